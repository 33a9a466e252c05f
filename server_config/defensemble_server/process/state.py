"""State files of the running servers: one per server, readable only by its owner because it contains the admin key."""

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
    """Return an address as it is written in a URL."""
    return f"[{host}]" if ":" in host else host


def connect_host(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


class ServerState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server that was started here: its guard (`pid`, with its start time because process IDs are reused), ports, folder and key.

    Example:
        >>> [(state.http_url, state.repository) for state in find_states()]
    """

    pid: Annotated[int, msgspec.Meta(gt=1)]  # a signal to 0 or -1 would reach many processes
    started: _Positive
    runtime: str
    host: str
    http_port: _Positive
    grpc_port: _Positive
    metrics_port: _Positive
    repository: str
    admin_key: str
    log: str
    supervisor_port: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of its front ends and of its supervisor."""
        ports = (self.http_port, self.grpc_port, self.metrics_port, self.supervisor_port)
        return tuple(port for port in ports if port)

    @property
    def supervisor_url(self) -> str | None:
        """URL of its supervisor; None without one."""
        return f"http://{self.address}:{self.supervisor_port}" if self.supervisor_port else None

    @property
    def address(self) -> str:
        """The host part of its URLs on this machine."""
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
        """Its fields without process and key."""
        return {name: value for name, value in asdict(self).items() if name not in ("pid", "started", "admin_key")}

    @property
    def alive(self) -> bool:
        """Whether that process is still running."""
        return process_start(self.pid) == self.started

    def terminate(self) -> None:
        """Ask that process to stop; do nothing if it has ended, even if its ID was reused."""
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
    """Return `$XDG_STATE_HOME/defensemble`, by default `~/.local/state/defensemble`."""
    return platformdirs.user_state_path("defensemble")


def state_file(grpc_port: int) -> Path:
    """Return the state file of the server on `grpc_port`."""
    return state_folder() / "servers" / f"{grpc_port}.json"


def events_file(grpc_port: int) -> Path:
    """Return the event file of the servers on `grpc_port`, which is kept after a server has ended."""
    return state_folder() / "servers" / f"{grpc_port}.events.jsonl"


def when_written(path: Path) -> float:
    """Return the modification time of a file; 0 if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def write_state(state: ServerState) -> Path:
    """Write the state file of a server, readable only by its owner.

    Raises:
        OSError: The file cannot be written; nothing is left of it.
    """
    path = state_file(state.grpc_port)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    write_atomic(path, json.dumps(asdict(state)).encode(), mode=0o600)
    return path


def read_states(*, on_damaged: Callable[[Path, str], None] = lambda path, why: None) -> list[ServerState]:
    """Return the running servers. Files of dead servers are removed; damaged files are passed to `on_damaged` and kept."""
    states = []
    for path in sorted((state_folder() / "servers").glob("*.json")):
        try:
            state = record_from_values(parse_json(read_regular(path, MAX_TEXT_BYTES)), ServerState)
        except FileNotFoundError:
            continue  # its server has just ended
        except (OSError, ValueError) as error:
            on_damaged(path, f"{path} is damaged ({error})")
            continue
        if state.alive:
            states.append(state)
        else:
            path.unlink(missing_ok=True)
    return states


def find_states(grpc_port: int | None = None, repository: Path | None = None) -> list[ServerState]:
    """Return the running servers on a gRPC port, of a repository, or all.

    Args:
        grpc_port: The gRPC port; None: any.
        repository: The model repository; None: any.

    Raises:
        StateError: No server matches; the text lists the running ones.
    """
    damaged: list[str] = []
    states = read_states(on_damaged=lambda path, why: damaged.append(f"{why}: remove it"))
    matching = [
        state
        for state in states
        if grpc_port in (None, state.grpc_port) and (repository is None or Path(state.repository) == repository.resolve())
    ]
    if matching:
        return matching
    if grpc_port is None and repository is None:
        raise StateError("; ".join(["no server is running on this machine; start one with `defensemble serve`", *damaged]))
    of = f" of {repository}" if repository is not None else ""
    on = f" on gRPC port {grpc_port}" if grpc_port is not None else ""
    raise StateError("; ".join([f"no server{of} is running{on}; running: {_listed(states) or 'none'}", *damaged]))


def find_state(grpc_port: int | None = None, repository: Path | None = None) -> ServerState:
    """Return the running server on a gRPC port, of a repository, or the only one.

    Args:
        grpc_port: The gRPC port; None: any.
        repository: The model repository; None: any.

    Raises:
        StateError: No server matches, or several do.
    """
    states = find_states(grpc_port, repository)
    if len(states) > 1:
        raise StateError(f"several servers are running; choose one with --grpc-port: {_listed(states)}")
    return states[0]


def _listed(states: list[ServerState]) -> str:
    return ", ".join(f"{state.grpc_port} ({state.repository})" for state in states)


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is not running."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def listens(pid: int, port: int) -> bool:
    """Return whether the process `pid`, and not another one, listens on a TCP port."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue  # closed in the meantime
    for table in ("tcp", "tcp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            fields = line.split()
            if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                return True
    return False
