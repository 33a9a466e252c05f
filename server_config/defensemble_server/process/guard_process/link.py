"""The guard's side of the supervisor: a process with which it exchanges lines of JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any, BinaryIO

from .child import die_with_parent

# The supervisor reports at least once a second.
SILENT_S = 30.0
_STOP_WITHIN_S = 2.0


class Link:
    """A running supervisor.

    Args:
        command: Its command line.
        request: The first line that it reads.
        log: Receives its errors.
        references: Descriptor of a file that each supervisor inherits from the previous one, because a line of input has a limit: a pipe
            that is not read holds 64 KiB.
    """

    def __init__(self, command: list[str], request: dict[str, Any], *, log: BinaryIO, references: int) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            pass_fds=(references,),
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        self._received = b""
        self._heard_at = time.monotonic()
        self.send(request | {"references": references})

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._output

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a supervisor that does not read is killed."""
        line = json.dumps(message).encode() + b"\n"
        try:
            if os.write(self._input, line) != len(line):
                self.process.kill()
        except BlockingIOError:
            self.process.kill()
        except BrokenPipeError:
            pass  # it has ended, which `ended` reports

    def messages(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived."""
        while True:
            try:
                received = os.read(self._output, 65_536)
            except BlockingIOError:
                break
            if not received:
                break
            self._received += received
            self._heard_at = time.monotonic()
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def ended(self) -> bool:
        """Whether the supervisor has ended; one that was silent for `SILENT_S` is killed."""
        if time.monotonic() - self._heard_at > SILENT_S:
            self.process.kill()
        return self.process.poll() is not None

    def stop(self) -> None:
        """Ask the supervisor to end, kill it if it does not, and release its pipes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
