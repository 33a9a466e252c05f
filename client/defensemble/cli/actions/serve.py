"""The action of `defensemble serve`: start a server and wait for its end, or stop one."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..interrupts import clean_up_on_sigint
from ..notes import print_note, print_progress
from ..shell import this_command

if TYPE_CHECKING:
    from defensemble_server import Server, ServerEvent

# `serve --detach` waits for so long until the supervisor answers, which has 1 s of imports to do.
_SUPERVISOR_WITHIN_S = 5.0


def run_server(
    repository: Path,
    *,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    supervisor_port: int | None,
    free_ports: bool,
    admin_key_file: Path | None,
    start_timeout_s: float,
    strict: bool,
    detach: bool,
    **settings: Any,
) -> None:
    """Serve a repository until SIGINT or SIGTERM, or with `detach` until the server is ready.

    Args:
        repository: Model repository.
        http_port: Port for HTTP, 0: any free one; None: 8000, or any free one with `free_ports`. Likewise `grpc_port` and `metrics_port`.
        grpc_port: Port for gRPC (8001).
        metrics_port: Port of the metrics (8002).
        supervisor_port: Port of the supervisor; None: 8003, or any free one if any other port is set.
        free_ports: Whether unset ports are any free ones.
        admin_key_file: File with the admin key; None: a random key.
        start_timeout_s: Timeout until the server is ready.
        strict: Whether all models must be served.
        detach: Whether to return when the server is ready.
        settings: Further fields of `ServeOptions`.

    Raises:
        click.ClickException: Too little can be served, the start was interrupted, or Triton ended with an error.
        defensemble_server.ServerError: See `defensemble_server.serve`.
    """
    from defensemble_server import ServeOptions, read_admin_key, serve

    options = ServeOptions(
        http_port=_port(http_port, 8000, free_ports),
        grpc_port=_port(grpc_port, 8001, free_ports),
        metrics_port=_port(metrics_port, 8002, free_ports),
        supervisor_port=_port(supervisor_port, 8003, free_ports or (http_port, grpc_port, metrics_port) != (None, None, None)),
        admin_key=None if admin_key_file is None else read_admin_key(admin_key_file, print_progress),
        **settings,
    )
    clean_up_on_sigint()
    signal.signal(signal.SIGTERM, _interrupt)
    is_ready = False
    try:
        with serve(repository, options, on_progress=print_progress, start_timeout_s=start_timeout_s) as server:
            missing = server.missing(strict=strict)
            if missing:
                _print_problems(server)
                raise click.ClickException(f"{missing}; nothing is left running")
            if detach and not server.supervisor_answers(_SUPERVISOR_WITHIN_S):
                print_note(f"the supervisor at {server.supervisor_url} does not answer yet; see {server.state.log}")
            is_ready = True
            server.notify_ready()
            if detach:
                server.detach()  # before printing: the server stays even if nobody reads standard output
            print_server(server)
            if detach:
                return
            exit_status = server.wait(_print_event)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # all has ended: a further signal would only change the exit status
        if not is_ready:
            raise click.ClickException("interrupted before the server was ready; nothing is left running") from None
        print_progress("stopped")
        return
    if exit_status != 0:
        lines = next((event.last_lines for event in reversed(server.events()) if event.last_lines), ())
        log_end = f". Its last lines:\n{chr(10).join(lines)}" if lines else ""
        raise click.ClickException(f"Triton ended with exit status {exit_status}; see {server.state.log}{log_end}")
    print_progress("stopped by another process")


def stop_running_server(grpc_port: int | None, repository: Path | None) -> None:
    """Stop the server on a gRPC port or of a repository, or the only one."""
    from defensemble_server import stop_server

    state = stop_server(grpc_port, repository=repository)
    click.echo(f"stopped the server of {state.repository} on gRPC port {state.grpc_port}")


def print_server(server: Server) -> None:
    """Print a server's URLs, its models, those that it does not serve, and the command that stops it."""
    _print_problems(server)
    click.echo(f"ready after {server.start_s:.1f} s, serving {', '.join(server.models)}")
    click.echo(f"  HTTP        {server.http_url}")
    click.echo(f"  gRPC        {server.grpc_url}")
    click.echo(f"  metrics     {server.metrics_url}")
    if server.supervisor_url is not None:
        click.echo(f"  supervisor  {server.supervisor_url} (/healthz /readyz /status /metrics)")
    click.echo(f"  log         {server.state.log}")
    click.echo(f"stop it: {this_command()} serve --stop --grpc-port {server.state.grpc_port}")


def _print_problems(server: Server) -> None:
    for name, problem in server.problems.items():
        click.echo(f"NOT served: {name}: {problem}", err=True)


def _print_event(event: ServerEvent) -> None:
    if event.kind != "ended":
        click.echo(f"{event.when}  {event.text}", err=True)


def _port(port: int | None, default: int, free: bool) -> int:
    return port if port is not None else 0 if free else default


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
