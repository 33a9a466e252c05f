"""The servers that `defensemble serve` runs on this machine for the current user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .._exceptions import InputError
from .._transport.address import DEFAULT_PORTS

if TYPE_CHECKING:
    from defensemble_server import ServerState, ServerStatus

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_local_server(url: str) -> ServerState | None:
    """Return the server of this machine and user that listens at a URL; None if there is none."""
    from defensemble_server import read_states

    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or parts.scheme not in DEFAULT_PORTS:
        return None
    over_grpc = parts.scheme.startswith("grpc")
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    return next((state for state in read_states() if port == (state.grpc_port if over_grpc else state.http_port)), None)


def may_restart(url: str) -> bool:
    """Return whether a server that does not answer may be restarting: on this machine, only servers of `serve`; elsewhere, any."""
    return urlsplit(url).hostname not in _LOOPBACK or find_local_server(url) is not None


def local_server_status(url: str) -> ServerStatus | None:
    """Return the status of the server of this machine and user that listens at a URL; None if there is none."""
    from defensemble_server import server_status

    state = find_local_server(url)
    return None if state is None else server_status(state)


def find_local_servers(repository: Path, on_warning: Callable[[str], None]) -> list[tuple[str, str]]:
    """Return the HTTP URLs and admin keys of the servers on this machine that serve a repository.

    Args:
        repository: The repository.
        on_warning: Receives a message for each state file that is damaged.
    """
    states = [state for state in _running_servers(on_warning) if Path(state.repository).resolve() == repository.resolve()]
    return [(state.http_url, state.admin_key) for state in states]


def find_local_urls(on_warning: Callable[[str], None], option: str) -> dict[str, str]:
    """Return the HTTP URLs of the running servers on this machine, each with its repository.

    HTTP, because a gRPC call that is interrupted, for example by Ctrl-C or a kill, can crash core 2.51.

    Args:
        on_warning: Receives a message for each state file that is damaged.
        option: How a command names a server, such as `--url URL`.

    Raises:
        InputError: No server is running.
    """
    servers = {state.http_url: state.repository for state in _running_servers(on_warning)}
    if not servers:
        raise InputError(
            f"no server was named, and `defensemble serve` runs none on this machine: start one, pass {option}, such as "
            "http://localhost:8000, or set DEFENSEMBLE_URL"
        )
    return servers


def find_only_local_url(on_warning: Callable[[str], None], option: str) -> str:
    """Return the HTTP URL of the only running server on this machine.

    Args:
        on_warning: Receives a message for each state file that is damaged.
        option: How a command names a server, such as `--url URL`.

    Raises:
        InputError: No server is running, or several are.
    """
    servers = find_local_urls(on_warning, option)
    if len(servers) > 1:
        listed = ", ".join(f"{url} ({repository})" for url, repository in servers.items())
        raise InputError(
            f"`defensemble serve` runs {len(servers)} servers on this machine, {listed}: pass {option}, or set DEFENSEMBLE_URL"
        )
    return next(iter(servers))


def _running_servers(on_warning: Callable[[str], None]) -> list[ServerState]:
    from defensemble_server import read_states

    def on_damaged(path: Path, why: str) -> None:
        on_warning(f"{why}: its server cannot be found automatically; if it is running, name it with --url")

    return read_states(on_damaged=on_damaged)
