"""The servers that `defensemble serve` runs on this machine, as it noted them for its user alone."""

from __future__ import annotations

from pathlib import Path

import click

from ..ensembles.local_servers import local_server


def servers_of(repository: Path) -> list[tuple[str, str]]:
    """The servers that run here on a folder: their HTTP URL, and their admin key.

    HTTP, because a gRPC call that is cut off, as by Ctrl-C or a kill, can crash core 2.51.
    """
    from defensemble_server import read_states

    def warn(path: Path, why: str) -> None:
        click.echo(f"{why}: the server that it was written for, if it runs, is not found here; name it with --url", err=True)

    found = [state for state in read_states(on_damaged=warn) if Path(state.repository).resolve() == repository.resolve()]
    return [(state.http_url, state.admin_key) for state in found]


def restarts_at(url: str) -> str:
    """How often the server at a URL of this machine was restarted and why; empty where it never was, or is not one of ours."""
    from defensemble_server import server_status

    state = local_server(url)
    status = None if state is None else server_status(state)
    if status is None or not status.restarts:
        return ""
    return f"restarted {status.restarts} time{'' if status.restarts == 1 else 's'}, last: {status.fault_text}"


def noted_key(url: str) -> str | None:
    """The admin key of the server at a URL of this machine; None for others."""
    state = local_server(url)
    return None if state is None else state.admin_key


def deaths_of(repository: Path) -> list[str]:
    """When and why the server of a folder died, if that was in the last 24 hours and it was not started again."""
    from defensemble_server import dead_servers

    return [f"the server on gRPC port {dead.grpc_port} {dead.text}; see {dead.log}" for dead in dead_servers(repository)]
