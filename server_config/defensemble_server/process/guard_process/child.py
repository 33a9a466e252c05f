"""The short-lived processes of a restart."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def die_with_parent(number: int) -> None:
    """Make the kernel send a signal to this process when the thread that forked it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number)


class Child:
    """A process that reads and writes JSON, through files in memory, so that writing never blocks."""

    def __init__(self, command: list[str], request: dict[str, Any], *, log: BinaryIO, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self.prepares = request["do"] == "plan"
        self._does = "reads the repository" if self.prepares else "checks the answers"
        self._answer = os.fdopen(os.memfd_create("answer"), "rb")
        with os.fdopen(os.memfd_create("request"), "wb+") as standard_input:
            standard_input.write(json.dumps(request).encode())
            standard_input.seek(0)
            self.process = subprocess.Popen(
                command, stdin=standard_input, stdout=self._answer, stderr=log, preexec_fn=lambda: die_with_parent(signal.SIGKILL)
            )

    def answer(self) -> dict[str, Any] | None:
        """Return its answer, an `error` if it gave none, or None while it runs."""
        if self.process.poll() is None:
            if time.monotonic() < self.deadline:
                return None
            self.kill()
            return {"error": f"the process that {self._does} took too long"}
        self._answer.seek(0)
        try:
            answer = json.loads(self._answer.read())
        except ValueError:
            return {"error": f"the process that {self._does} ended with status {self.process.returncode}; see the log"}
        assert isinstance(answer, dict)
        return answer

    def kill(self) -> None:
        """Kill the process if it is running."""
        self.process.kill()
        self.process.wait()
