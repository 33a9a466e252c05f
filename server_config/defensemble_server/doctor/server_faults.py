"""What `defensemble doctor` reports of servers that were restarted or died."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

from ..process.events import RECENT_S, dead_servers, server_status
from ..process.state import read_states


def server_faults() -> Iterator[tuple[str, str, str]]:
    """For each server that was interrupted in the last 24 hours: its name, what happened, and the command that helps."""
    for state in read_states():
        status = server_status(state)
        if status.last_fault is not None and status.last_fault.time > time.time() - RECENT_S:
            restarts = f"{status.restarts} restart{'' if status.restarts == 1 else 's'}"
            text = f"{status.text}, {restarts}; {status.fault_text}"
            yield f"server {state.grpc_port}", text, f"defensemble serve --status --grpc-port {state.grpc_port}"
    for dead in dead_servers():
        yield f"server {dead.grpc_port}", f"{dead.repository}: {dead.text}", f"defensemble serve {shlex.quote(dead.repository)}"
