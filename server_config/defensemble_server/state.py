"""Which servers run here: one small file each, readable by their owner alone, since it holds the admin key."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ._errors import StateError


@dataclass(frozen=True)
class ServerState:
    """A server that was started here: its supervisor (``pid``, with its start time: numbers are used again), ports, folder, key."""

    pid: int
    started: int
    runtime: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    repository: str
    admin_key: str
    log: str

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return process_start(self.pid) == self.started


def state_folder() -> Path:
    """``$XDG_STATE_HOME/defensemble``, by default ``~/.local/state/defensemble``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "defensemble"


def state_file(grpc_port: int) -> Path:
    """Where the server on ``grpc_port`` is written down."""
    return state_folder() / "servers" / f"{grpc_port}.json"


def write_state(state: ServerState) -> Path:
    """Write a server down, readable by its owner alone, aside and then renamed."""
    path = state_file(state.grpc_port)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")  # mode 600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(state), file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def read_states() -> list[ServerState]:
    """All servers that are written down and run; files of dead ones are removed.

    Raises:
        StateError: a file is damaged.
    """
    states = []
    for path in sorted((state_folder() / "servers").glob("*.json")):
        try:
            state = ServerState(**json.loads(path.read_text()))
        except FileNotFoundError:
            continue  # its server ended just now
        except (ValueError, TypeError) as error:
            raise StateError(f"{path} is damaged ({error}): remove it") from error
        if state.alive:
            states.append(state)
        else:
            path.unlink(missing_ok=True)
    return states


def find_state(grpc_port: int | None = None) -> ServerState:
    """The running server on ``grpc_port``, or the only one there is.

    Raises:
        StateError: there is none, or several and no port was given.
    """
    states = read_states()
    known = ", ".join(f"{state.grpc_port} ({state.repository})" for state in states)
    if grpc_port is not None:
        for state in states:
            if state.grpc_port == grpc_port:
                return state
        raise StateError(f"no server of ours runs on gRPC port {grpc_port}; running: {known or 'none'}")
    if not states:
        raise StateError("no server of ours runs here: start one with `defensemble serve`")
    if len(states) > 1:
        raise StateError(f"several servers run here: name one by --grpc-port: {known}")
    return states[0]


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])
