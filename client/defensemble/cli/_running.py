"""The servers that `defensemble serve` runs on this machine, as it noted them for its user alone."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from defensemble._transport import DEFAULT_PORTS

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def servers_of(repository: Path) -> list[tuple[str, str]]:
    """The servers that run here on a folder: their HTTP URL, and their admin key.

    HTTP, because a gRPC call that is cut off, as by Ctrl-C or a kill, can crash core 2.51.
    """
    from defensemble_server import read_states
    from defensemble_server.options import reached_at

    found = [state for state in read_states() if Path(state.repository).resolve() == repository.resolve()]
    return [(f"http://{reached_at(state.host)}:{state.http_port}", state.admin_key) for state in found]


def noted_key(url: str) -> str | None:
    """The admin key of the server at a URL of this machine; None for others."""
    from defensemble_server import read_states

    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or parts.scheme not in DEFAULT_PORTS:
        return None
    over_grpc = parts.scheme.startswith("grpc")
    ports = {state.grpc_port if over_grpc else state.http_port: state.admin_key for state in read_states()}
    return ports.get(parts.port or DEFAULT_PORTS[parts.scheme])
