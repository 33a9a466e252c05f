"""Triton's log and other files that the guard appends to."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import BinaryIO

LOG_BYTES = 5_000_000
LOGS_KEPT = 3
LINES_SHOWN = 15
# The first line of each run in a log begins with this.
RUN = "=== Triton is started: "
_TAIL_BYTES = 65_536
_LINE_LENGTH = 500


def last_lines(log: str, count: int = LINES_SHOWN) -> list[str]:
    """Return the last lines that the latest run wrote to a log."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:  # an unreadable log must not stop the server
        return []
    lines = text.rpartition(RUN)[2].splitlines()
    return [line[:_LINE_LENGTH] for line in (lines[1:] if RUN in text else lines)[-count:]]


def rotate(log: str) -> None:
    """Rotate a log at `LOG_BYTES`, keeping `LOGS_KEPT` older files.

    Triton keeps the file open and would continue to write to a renamed file, so the content is copied and the file truncated. Output
    between the two is lost.
    """
    try:
        if os.stat(log).st_size <= LOG_BYTES:
            return
    except OSError:
        return
    with contextlib.suppress(OSError):  # on a full disk, the content is dropped
        for number in range(LOGS_KEPT - 1, 0, -1):
            if os.path.exists(f"{log}.{number}"):
                os.replace(f"{log}.{number}", f"{log}.{number + 1}")
        shutil.copyfile(log, f"{log}.1")
    with contextlib.suppress(OSError):
        os.truncate(log, 0)


def appended(path: str) -> BinaryIO:
    """Open a file for appending, and create it and its folder if they were deleted."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o600))  # a FIFO is an error


def write_line(descriptor: int, text: str) -> None:
    """Write a line, if that is possible: neither a full disk nor a parent that is gone or does not read may end the server."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{text}\n".encode())
