"""Whether Triton's process is alive: it answers on a connection, and is not stopped."""

from __future__ import annotations

import errno
import socket
import time
from typing import Any

ANSWER_WITHIN_S = 2.0


class Check:
    """A non-blocking connection on which the server, not only the kernel, must send something within `ANSWER_WITHIN_S`."""

    def __init__(self, address: list[Any], request: bytes = b"") -> None:
        self.begin = time.monotonic()
        self.deadline = self.begin + ANSWER_WITHIN_S
        self.answered: bool | None = None
        self._request = request
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.setblocking(False)
        if self.socket.connect_ex(tuple(address)) not in (0, errno.EINPROGRESS):
            self._end(False)

    def step(self) -> None:
        """Send and receive what is possible without waiting; `answered` is then the result, or None until there is one."""
        if self.answered is not None:
            return
        try:
            if self._request:
                self._request = self._request[self.socket.send(self._request) :]
            self._end(bool(self.socket.recv(64)))
        except BlockingIOError:
            if time.monotonic() >= self.deadline:
                self._end(False)
        except OSError:  # refused or reset
            self._end(False)

    def _end(self, answered: bool) -> None:
        self.answered = answered
        self.socket.close()


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal (SIGSTOP); one that a debugger has stopped is not."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (FileNotFoundError, ProcessLookupError):
        return False
