"""What the guard reads from its parent, and the files that it leaves."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from .log_files import appended, write_line

EVENTS_BYTES = 500_000


def append_event(path: str, kind: str, facts: dict[str, Any]) -> None:
    """Append an event to a file, which is rotated at `EVENTS_BYTES`; a failure is written to the log."""
    event = {"time": round(time.time(), 3), "event": kind, "guard": os.getpid(), **facts}
    try:
        if os.path.exists(path) and os.stat(path).st_size > EVENTS_BYTES:
            os.replace(path, f"{path}.1")
        with appended(path) as file:
            file.write(json.dumps(event).encode() + b"\n")
    except OSError as error:
        write_line(2, f"{error}: could not record the event {kind}")


def remove_state(state: str) -> None:
    """Remove our state file, but not that of another server on the same port."""
    try:
        with open(state) as file:
            ours = json.load(file)["pid"] == os.getpid()
    except (OSError, ValueError, KeyError, TypeError):
        return  # missing, or not our format
    if ours:
        os.unlink(state)


def read_line(descriptor: int) -> str:
    """Read one line, byte by byte, so that nothing after it is consumed. Return an empty string at end of file."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().rstrip("\n")
