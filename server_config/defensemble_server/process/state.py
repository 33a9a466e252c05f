"""Which servers run here and where they are reached: one small file each, readable by their owner alone, since it holds the admin key."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import platformdirs
from msgspec.structs import asdict

from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_repository.filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from defensemble_repository.records import parse_json, record_from_values

from ..errors import StateError

_Positive = Annotated[int, msgspec.Meta(gt=0)]


def url_host(host: str) -> str:
    """An address as it is written before a port."""
    return f"[{host}]" if ":" in host else host


def connect_host(host: str) -> str:
    """Where a server that listens on an address is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


class ServerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that was started here: its guard (``pid``, with its start time: numbers are used again), ports, folder, key."""

    pid: Annotated[int, msgspec.Meta(gt=1)]  # of 0 or -1, a signal would go to many processes
    started: _Positive
    runtime: str
    host: str
    http_port: _Positive
    grpc_port: _Positive
    metrics_port: _Positive
    repository: str
    admin_key: str
    log: str

    @property
    def ports(self) -> tuple[int, int, int]:
        """The ports that it listens on."""
        return self.http_port, self.grpc_port, self.metrics_port

    @property
    def address(self) -> str:
        """Where this machine reaches it, as it is written before a port."""
        return url_host(connect_host(self.host))

    @property
    def http_url(self) -> str:
        """URL for the client and for curl."""
        return f"http://{self.address}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """URL for the client."""
        return f"grpc://{self.address}:{self.grpc_port}"

    @property
    def about(self) -> dict[str, Any]:
        """What is known of it, but for its process and its key."""
        return {name: value for name, value in asdict(self).items() if name not in ("pid", "started", "admin_key")}

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return process_start(self.pid) == self.started

    def terminate(self) -> None:
        """Ask that very process to stop; nothing where it has ended, even if its number belongs to another now."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:
                signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)


def state_folder() -> Path:
    """`$XDG_STATE_HOME/defensemble`, by default `~/.local/state/defensemble`."""
    return platformdirs.user_state_path("defensemble")


def state_file(grpc_port: int) -> Path:
    """Where the server on ``grpc_port`` is written down."""
    return state_folder() / "servers" / f"{grpc_port}.json"


def events_file(grpc_port: int) -> Path:
    """Where the guards of the servers on `grpc_port` write down what happens; it stays when the server has ended."""
    return state_folder() / "servers" / f"{grpc_port}.events.jsonl"


def when_written(path: Path) -> float:
    """When a file was written last; 0 where it is gone, since another start has removed it just now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def write_state(state: ServerState) -> Path:
    """Write a server down, readable by its owner only.

    Raises:
        OSError: it cannot be written (names the file); nothing is left of it.
    """
    path = state_file(state.grpc_port)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    write_atomic(path, json.dumps(asdict(state)).encode(), mode=0o600)
    return path


def read_states(*, on_damaged: Callable[[Path, str], None] = lambda path, why: None) -> list[ServerState]:
    """All servers that are written down and run; files of dead ones are removed, of damaged ones told to ``on_damaged`` and left."""
    states = []
    for path in sorted((state_folder() / "servers").glob("*.json")):
        try:
            state = record_from_values(parse_json(read_regular(path, MAX_TEXT_BYTES)), ServerState)
        except FileNotFoundError:
            continue  # its server ended just now
        except (OSError, ValueError) as error:
            on_damaged(path, f"{path} is damaged ({error})")
            continue
        if state.alive:
            states.append(state)
        else:
            path.unlink(missing_ok=True)
    return states


def find_states(grpc_port: int | None = None, repository: Path | None = None) -> list[ServerState]:
    """The running servers on `grpc_port`, of the folder `repository`, or all.

    Raises:
        StateError: there is none; the text lists those that run.
    """
    damaged: list[str] = []
    states = read_states(on_damaged=lambda path, why: damaged.append(f"{why}: remove it"))
    found = [
        state
        for state in states
        if grpc_port in (None, state.grpc_port) and (repository is None or Path(state.repository) == repository.resolve())
    ]
    if found:
        return found
    if grpc_port is None and repository is None:
        raise StateError("; ".join(["no server of ours runs here: start one with `defensemble serve`", *damaged]))
    of = f" of {repository}" if repository is not None else ""
    on = f" on gRPC port {grpc_port}" if grpc_port is not None else ""
    raise StateError("; ".join([f"no server of ours{of} runs{on}; running: {_known(states) or 'none'}", *damaged]))


def find_state(grpc_port: int | None = None, repository: Path | None = None) -> ServerState:
    """The running server on `grpc_port`, of the folder `repository`, or the only one there is.

    Raises:
        StateError: there is none, or there are several.
    """
    states = find_states(grpc_port, repository)
    if len(states) > 1:
        raise StateError(f"several servers run here: name one by --grpc-port: {_known(states)}")
    return states[0]


def _known(states: list[ServerState]) -> str:
    return ", ".join(f"{state.grpc_port} ({state.repository})" for state in states)


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None where it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def listens(pid: int, port: int) -> bool:
    """Whether it is that very process that listens on a TCP port: another one may have taken it first."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue  # closed meanwhile
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                return True
    return False
