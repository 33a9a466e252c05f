"""The servers that `defensemble serve` runs on this machine, as it noted them for its user alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .._transport.address import DEFAULT_PORTS

if TYPE_CHECKING:
    from defensemble_server import ServerState, ServerStatus

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_local_server(url: str) -> ServerState | None:
    """The server of this machine and user that listens at a URL; None for others."""
    from defensemble_server import read_states

    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or parts.scheme not in DEFAULT_PORTS:
        return None
    over_grpc = parts.scheme.startswith("grpc")
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    return next((state for state in read_states() if port == (state.grpc_port if over_grpc else state.http_port)), None)


def may_restart(url: str) -> bool:
    """Whether a server that does not answer might be restarting. On this machine that is so for the servers of `serve`.

    Of servers elsewhere nothing is known from here.
    """
    return urlsplit(url).hostname not in _LOOPBACK or find_local_server(url) is not None


def local_server_status(url: str) -> ServerStatus | None:
    """How the server of this machine and user that listens at a URL is; None for others."""
    from defensemble_server import server_status

    state = find_local_server(url)
    return None if state is None else server_status(state)


def find_local_servers(repository: Path, on_warning: Callable[[str], None]) -> list[tuple[str, str]]:
    """The servers that run here on a folder: their HTTP URL, and their admin key.

    HTTP, because a gRPC call that is cut off, as by Ctrl-C or a kill, can crash core 2.51.
    """
    from defensemble_server import read_states

    def on_damaged(path: Path, why: str) -> None:
        on_warning(f"{why}: the server that it was written for, if it runs, is not found here; name it with --url")

    found = [state for state in read_states(on_damaged=on_damaged) if Path(state.repository).resolve() == repository.resolve()]
    return [(state.http_url, state.admin_key) for state in found]
