"""The process between us and Triton, which restarts Triton, ends it when we end or die, and cleans up: our side of `guard_main.py`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import StartError
from . import guard_main

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Guard:
    """A server under guard: `command` with `environment`, its output appended to `log`; the file `state` is removed when it has ended.

    `stop_signal` asks it to end (SIGUSR1 for our backend, which drains the server), for which it has `grace_s`. A command that cannot be
    run is a StartError.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, state: Path, grace_s: float, stop_signal: int
    ) -> None:
        self._grace_s = grace_s
        self._status: int | None = None
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", guard_main.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,  # not ours: a server that is left running would hold the pipe that our caller reads
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C in a terminal reaches this process alone, which then ends the server in good order
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._reports = self._process.stdin, self._process.stdout
        try:
            settings = {"command": list(command), "environment": dict(environment), "log": str(log), "state": str(state)}
            self._orders.write(json.dumps({**settings, "grace_s": grace_s, "stop_signal": stop_signal}) + "\n")
            started = self._reports.readline().split()
            if len(started) != 2 or started[0] != "started":
                raise StartError(f"{command[0]} could not be run{last_lines(log)}")
            self.first_pid = int(started[1])
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The guard's own process: SIGTERM to it stops the server in good order."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the guard runs: it ends with the server, unless it restarts that."""
        return self._process.poll() is None

    @property
    def crash_signal(self) -> signal.Signals | None:
        """The signal by which a server crashed that `stop` or `wait` has seen to its end; None where it ended otherwise."""
        return next((crash for crash in _CRASHES if self._status == -crash), None)

    @property
    def detached(self) -> bool:
        """Whether the server is to outlive this process."""
        return self._orders.closed

    def ready(self, settings: Mapping[str, Any]) -> None:
        """Report that the answers are right, and what a restart needs: see `guard_main.py`. Returns when that is written down."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, which `wait` returns
            self._orders.write(f"ready {json.dumps(settings)}\n")
        self._heed(self._reports.readline())

    def detach(self) -> None:
        """Let the server outlive this process."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write("detach\n")
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def wait(self, on_event: Callable[[], None] = lambda: None) -> int:
        """Wait until the server ends for good, by itself or stopped from elsewhere; its exit status.

        `on_event` is called when the guard has written down an event.
        """
        with self._reports as reports:
            for line in reports:
                self._heed(line)
                on_event()
        own = self._process.wait()
        # Killed, it reports nothing; Triton ends with it, and not by anyone's order.
        return self._status if self._status is not None else own or 1

    def stop(self, *, at_once: bool = False) -> None:
        """Drain and stop the server, or kill it `at_once`, and wait until all of it is gone; more than once does no harm.

        Raises:
            KeyboardInterrupt: it was interrupted; the server was then killed, and all of it is gone.
        """
        if at_once and self.running:
            self._process.send_signal(signal.SIGINT)
        if self._orders.closed:
            if self.running:
                self._process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and what is left of our order has no reader
                self._orders.close()  # end of file: the order to stop
        interrupt = None
        while self.running:
            try:
                self._process.wait(self._grace_s + 10)
            except KeyboardInterrupt as again:  # requests are not waited for any longer, the end of all of it is
                interrupt = again
                self._process.send_signal(signal.SIGINT)
        if not self._reports.closed:
            with self._reports as reports:
                for line in reports:
                    self._heed(line)
        if interrupt is not None:
            raise interrupt

    def _heed(self, report: str) -> None:
        if report.startswith("exited "):
            self._status = int(report.split()[1])


def last_lines(log: Path) -> str:
    """The end of a log as the end of an error's text; empty where the log is."""
    lines = guard_main.last_lines(str(log))
    return f". The last lines of {log}:\n" + "\n".join(lines) if lines else ""
