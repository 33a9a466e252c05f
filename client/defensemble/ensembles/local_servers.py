"""The servers that `defensemble serve` runs on this machine, found by their URL."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .._transport.base import DEFAULT_PORTS

if TYPE_CHECKING:
    from defensemble_server import ServerState

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_server(url: str) -> ServerState | None:
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
    return urlsplit(url).hostname not in _LOOPBACK or local_server(url) is not None


def restarting(url: str) -> str | None:
    """Since when the server at a URL is being restarted, in words; None where it is not, or is not one of ours."""
    from defensemble_server import server_status

    status = None if (state := local_server(url)) is None else server_status(state)
    return None if status is None or status.restarting_since is None else status.text
