"""The action of `defensemble serve --status`: the running servers of this machine, and those that crashed in the last 24 hours."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from defensemble_server import DeadServer, ServerEvent, ServerStatus

SCHEMA = "defensemble.servers/1"


def show_status(grpc_port: int | None, repository: Path | None, *, as_json: bool) -> None:
    """Print the servers on a gRPC port, of a repository, or all.

    Args:
        grpc_port: Port; None: any.
        repository: Model repository; None: any.
        as_json: Whether to print JSON.

    Raises:
        defensemble_server.StateError: No server runs; raised after the crashed ones are printed.
    """
    from defensemble_server import StateError, dead_servers, find_states, server_status

    dead = [server for server in dead_servers(repository) if grpc_port in (None, server.grpc_port)]
    none_running: StateError | None = None
    statuses: list[ServerStatus] = []
    try:
        statuses = [server_status(state) for state in find_states(grpc_port, repository)]
    except StateError as error:
        none_running = error
    if as_json:
        servers = [_values_from_status(status) for status in statuses]
        click.echo(json.dumps({"schema": SCHEMA, "servers": servers, "dead": [asdict(server) for server in dead]}, indent=2))
    else:
        for status in statuses:
            _print_status(status)
        for server in dead:
            _print_dead(server)
    if none_running is not None:
        raise none_running


def _print_status(status: ServerStatus) -> None:
    state = status.state
    click.echo(f"{state.repository}")
    click.echo(f"  HTTP        {state.http_url}")
    click.echo(f"  gRPC        {state.grpc_url}")
    if state.supervisor_url is not None:
        click.echo(f"  supervisor  {state.supervisor_url} (/healthz /readyz /status /metrics)")
    click.echo(f"  log         {state.log}")
    click.echo(f"  state       {status.text}")
    click.echo(f"  restarts    {status.restarts}")
    if status.last_fault is not None:
        click.echo(f"  last        {status.fault_text}")
        for line in status.last_fault.last_lines:
            click.echo(f"              | {line}")


def _print_dead(server: DeadServer) -> None:
    click.echo(f"{server.repository}")
    click.echo(f"  state       {server.text} (gRPC port {server.grpc_port})")
    click.echo(f"  log         {server.log}")
    for line in server.last_lines:
        click.echo(f"              | {line}")


def _values_from_status(status: ServerStatus) -> dict[str, Any]:
    return {
        **status.state.about,
        "guard_pid": status.state.pid,
        "triton_pid": status.pid,
        "state": "running" if status.restarting_since is None else "restarting",
        "restarting_since": status.restarting_since,
        "uptime_s": round(status.uptime_s, 3),
        "restarts": status.restarts,
        "not_served": dict(status.not_served),
        "wrong": dict(status.wrong),
        "last_fault": None if status.last_fault is None else _values_from_event(status.last_fault),
        "events": [_values_from_event(event) for event in status.events],
    }


def _values_from_event(event: ServerEvent) -> dict[str, Any]:
    return {"time": event.time, "event": event.kind, "text": event.text, **event.facts}
