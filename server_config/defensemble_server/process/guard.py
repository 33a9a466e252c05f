"""The parent's side of the guard process (`guard_process`), which restarts Triton, stops it when this process ends, and cleans up."""

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
from .guard_process.log_files import last_lines as lines_of_log

# Without site-packages, it needs 13 MB of memory.
_MAIN = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from guard_process.main import main; sys.exit(main())"
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


class Guard:
    """A server process under a guard.

    Args:
        command: The server's command line.
        environment: The server's environment.
        log: File to which its output is appended.
        state: File that is removed when the server has ended.
        grace_s: Seconds that the server has to end after `stop_signal`.
        stop_signal: Signal that asks it to end (SIGUSR1 for our backend, which drains the server).

    Raises:
        StartError: The command cannot be run.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path, state: Path, grace_s: float, stop_signal: int
    ) -> None:
        self._grace_s = grace_s
        self._status: int | None = None
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MAIN],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,  # not our stderr: a detached server would keep our caller's pipe open
                text=True,
                bufsize=1,
                start_new_session=True,  # Ctrl-C in a terminal only reaches this process, which then drains the server
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
        """Process ID of the guard; SIGTERM to it drains and stops the server."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the guard is running; it ends when the server has ended without a restart."""
        return self._process.poll() is None

    @property
    def crash_signal(self) -> signal.Signals | None:
        """The signal that crashed the server, known after `stop` or `wait`; None if it did not crash."""
        return next((crash for crash in _CRASHES if self._status == -crash), None)

    @property
    def detached(self) -> bool:
        """Whether the server keeps running after this process ends."""
        return self._orders.closed

    def ready(self, settings: Mapping[str, Any]) -> None:
        """Report that the answers are correct, with the settings of a restart (see `guard_process/main.py`); return when it is recorded."""
        with contextlib.suppress(BrokenPipeError):  # the guard has ended; `wait` returns that
            self._orders.write(f"ready {json.dumps(settings)}\n")
        self._handle_report(self._reports.readline())

    def detach(self) -> None:
        """Keep the server running after this process ends."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.write("detach\n")
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def wait(self, on_event: Callable[[], None] = lambda: None) -> int:
        """Wait until the server has ended without a restart, and return its exit status.

        `on_event` is called after the guard has recorded an event.
        """
        with self._reports as reports:
            for line in reports:
                self._handle_report(line)
                on_event()
        own = self._process.wait()
        # A killed guard reports nothing; Triton ends with it.
        return self._status if self._status is not None else own or 1

    def stop(self, *, kill: bool = False) -> None:
        """Drain and stop the server, and wait until all its processes have ended. Can be called again.

        Args:
            kill: Kill the server instead of draining it.

        Raises:
            KeyboardInterrupt: An interrupt during the drain; the server was killed, and all its processes have ended.
        """
        if kill and self.running:
            self._process.send_signal(signal.SIGINT)
        if self._orders.closed:
            if self.running:
                self._process.terminate()
        else:
            with contextlib.suppress(BrokenPipeError):  # the guard has ended already
                self._orders.close()  # end of file asks the guard to stop
        interrupt = None
        while self.running:
            try:
                self._process.wait(self._grace_s + 10)
            except KeyboardInterrupt as error:  # stop waiting for requests, but wait for the processes
                interrupt = error
                self._process.send_signal(signal.SIGINT)
        if not self._reports.closed:
            self.wait()  # for its last report
        if interrupt is not None:
            raise interrupt

    def _handle_report(self, report: str) -> None:
        if report.startswith("exited "):
            self._status = int(report.split()[1])


def last_lines(log: Path) -> str:
    """Return the last lines of a log as the end of an error message; empty if the log is."""
    lines = lines_of_log(str(log))
    return f". The last lines of {log}:\n" + "\n".join(lines) if lines else ""
