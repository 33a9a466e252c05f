"""`defensemble serve`: Triton on a model repository, until it is stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..notes import print_progress
from ..options import PATH
from ..shell import this_command

if TYPE_CHECKING:
    from defensemble_server import Server, ServerEvent


@click.command("serve", short_help="Start Triton on a model repository; look at servers that run, or stop them.")
@click.argument("repository", type=PATH, required=False)
@click.option(
    "--runtime",
    type=click.Choice(["embedded", "path", "docker"]),
    default="embedded",
    help="Triton from its wheel, from PATH (inside NVIDIA's container), or by `docker run` (not tested).",
)
@click.option("--profile", help="Take configs/PROFILE.pbtxt of each model: see `defensemble profile`.")
@click.option("--host", default="127.0.0.1", help="Address or name to listen on; the embedded Triton refuses public ones.")
@click.option("--http-port", type=int, help="0: any free one.  [default: 8000]")
@click.option("--grpc-port", type=int, help="0: any free one.  [default: 8001; with --stop or --status: whichever runs]")
@click.option("--metrics-port", type=int, help="0: any free one.  [default: 8002]")
@click.option("--free-ports", is_flag=True, help="Choose free ports where none is given.")
@click.option("--admin-key-file", type=PATH, help="File with the key that editing needs; a random key without it.")
@click.option(
    "--drain",
    "drain_s",
    type=click.IntRange(min=0),
    default=5,
    help="Seconds that requests get to finish when the server is stopped; later ones get UNAVAILABLE (HTTP 503).",
)
@click.option(
    "--expose-outdated-server", is_flag=True, help="Let the embedded Triton of 2024, with known vulnerabilities, listen on --host."
)
@click.option(
    "--start-timeout",
    "start_timeout_s",
    type=click.FloatRange(min=1),
    default=300.0,
    help="Seconds that Triton gets from its start until its models are loaded and their answers are checked.",
)
@click.option("--strict", is_flag=True, help="Fail unless everything in the repository is served.")
@click.option("--no-restart", is_flag=True, help="Do not start Triton again when it dies or hangs.")
@click.option("--detach", is_flag=True, help="Return when the server is ready, and leave it running until it is stopped.")
@click.option("--stop", is_flag=True, help="Stop the server of REPOSITORY or --grpc-port, or the only one, instead of starting one.")
@click.option("--status", is_flag=True, help="Show the servers that run here, and those that died in the last 24 hours.")
@click.option("--json", "as_json", is_flag=True, help="With --status: print JSON.")
def command(
    repository: Path | None,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    free_ports: bool,
    admin_key_file: Path | None,
    start_timeout_s: float,
    strict: bool,
    no_restart: bool,
    detach: bool,
    stop: bool,
    status: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    r"""Serve REPOSITORY (default: model_repository) with Triton until Ctrl-C, which lets requests finish; a second Ctrl-C stops at once.

    Ready when every classifier, and every ensemble that takes `images`, has answered a fixed image rightly; other models are loaded, but
    not asked. What cannot be served is named and left out. The exit status is 1, and nothing is left running, if no model
    that can be called or, where the repository has ensembles, no ensemble could be served; with --strict, if anything could not.

    When Triton dies or hangs, it is started again on the same ports and with the same key, and its answers are checked again. After five
    restarts in a row without a right answer, waiting 0, 0.5, 1, 2 and 4 seconds, the exit status is 1. What happened is shown by --status,
    `defensemble doctor` and `defensemble ensemble show`. A container is not restarted: give it a restart policy of its own.

    Loading and unloading models, shared memory, logging and tracing are open to the holder of the admin key alone: the header x-admin-key
    over HTTP, triton-grpc-protocol-x-admin-key over gRPC. Triton takes that key on its command line, where other users of this machine can
    see it.

    \b
    Examples:
      defensemble serve model_repository
      defensemble serve model_repository --free-ports
      defensemble serve model_repository --detach
      defensemble serve model_repository --strict --start-timeout 60
      defensemble serve model_repository --runtime docker --profile gpu-tensorrt
      defensemble serve --status
      defensemble serve model_repository --status --json
      defensemble serve --stop
      defensemble serve --stop model_repository
      defensemble serve --stop --grpc-port 8001
    """
    from defensemble_server import ServeOptions, read_admin_key, serve, stop_server

    if stop and status:
        raise click.UsageError("--stop and --status exclude each other: give one of them")
    if as_json and not status:
        raise click.UsageError("--json prints what --status shows: give both")
    if status:
        from ..actions.server_status import show_status

        show_status(grpc_port, repository, as_json=as_json)
        return
    if stop:
        state = stop_server(grpc_port, repository=repository)
        click.echo(f"stopped the server of {state.repository} on gRPC port {state.grpc_port}")
        return

    options = ServeOptions(
        http_port=_port(http_port, 8000, free_ports),
        grpc_port=_port(grpc_port, 8001, free_ports),
        metrics_port=_port(metrics_port, 8002, free_ports),
        admin_key=None if admin_key_file is None else read_admin_key(admin_key_file, print_progress),
        restart=not no_restart,
        **settings,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    ready = False
    try:
        with serve(repository or Path("model_repository"), options, on_progress=print_progress, start_timeout_s=start_timeout_s) as server:
            missing = server.missing(strict=strict)
            if missing:
                _show_problems(server)
                raise click.ClickException(f"{missing}; nothing is left running")
            ready = True
            if detach:
                server.detach()  # first: it runs on even where nobody reads what is printed
            show(server)
            if detach:
                return
            exit_status = server.wait(_show_event)
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # all is gone: one more finds nothing to end, and would only spoil the exit status
        if not ready:
            raise click.ClickException("interrupted before the server was ready; nothing is left running") from None
        click.echo("stopped", err=True)
        return
    if exit_status != 0:
        lines = next((event.last_lines for event in reversed(server.events()) if event.last_lines), ())
        shown = f". Its last lines:\n{chr(10).join(lines)}" if lines else ""
        raise click.ClickException(f"Triton ended by itself with status {exit_status}; see {server.state.log}{shown}")
    click.echo("stopped from elsewhere", err=True)


def show(server: Server) -> None:
    """Print where a server listens, what it serves and what it does not, and how it is stopped."""
    _show_problems(server)
    click.echo(f"ready after {server.start_s:.1f} s, serving {', '.join(server.models)}")
    click.echo(f"  HTTP     {server.http_url}")
    click.echo(f"  gRPC     {server.grpc_url}")
    click.echo(f"  metrics  {server.metrics_url}")
    click.echo(f"  log      {server.state.log}")
    click.echo(f"stop it: {this_command()} serve --stop --grpc-port {server.state.grpc_port}")


def _show_problems(server: Server) -> None:
    for name, problem in server.problems.items():
        click.echo(f"NOT served: {name}: {problem}", err=True)


def _show_event(event: ServerEvent) -> None:
    if event.kind != "ended":
        click.echo(f"{event.when}  {event.text}", err=True)


def _port(given: int | None, usual: int, free: bool) -> int:
    return given if given is not None else 0 if free else usual


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
