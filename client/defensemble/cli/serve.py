"""`defensemble serve`: Triton on a model repository, until it is stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from defensemble.cli._invocation import this_command

if TYPE_CHECKING:
    from defensemble_server import Server


@click.command("serve", short_help="Start Triton on a model repository, or stop one that was left running.")
@click.argument("repository", type=click.Path(path_type=Path), default=Path("model_repository"))
@click.option(
    "--runtime",
    type=click.Choice(["embedded", "path", "docker"]),
    default="embedded",
    show_default=True,
    help="Triton from its wheel, from PATH (inside NVIDIA's container), or by `docker run` (not tested).",
)
@click.option("--profile", help="Take configs/PROFILE.pbtxt of each model: see `defensemble profile`.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address or name to listen on; the embedded Triton refuses public ones."
)
@click.option("--http-port", type=int, help="0: any free one.  [default: 8000]")
@click.option("--grpc-port", type=int, help="0: any free one.  [default: 8001; with --stop: the only server]")
@click.option("--metrics-port", type=int, help="0: any free one.  [default: 8002]")
@click.option("--free-ports", is_flag=True, help="Choose free ports where none is given.")
@click.option("--admin-key-file", type=click.Path(path_type=Path), help="File with the key that editing needs; a random key without it.")
@click.option(
    "--drain", "drain_s", type=click.IntRange(min=0), default=5, show_default=True, help="Seconds that requests get to finish at the end."
)
@click.option("--expose-outdated-server", is_flag=True, help="Let the embedded Triton of 2024, with its published holes, listen on --host.")
@click.option(
    "--start-timeout",
    "start_timeout_s",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    help="Seconds until it must be ready.",
)
@click.option("--detach", is_flag=True, help="Return when the server is ready, and leave it running until it is stopped.")
@click.option("--stop", is_flag=True, help="Stop a server that runs here instead of starting one.")
def command(
    repository: Path,
    runtime: str,
    profile: str | None,
    host: str,
    http_port: int | None,
    grpc_port: int | None,
    metrics_port: int | None,
    free_ports: bool,
    admin_key_file: Path | None,
    drain_s: int,
    expose_outdated_server: bool,
    start_timeout_s: float,
    detach: bool,
    stop: bool,
) -> None:
    r"""Serve REPOSITORY (default: model_repository) with Triton until Ctrl-C, which lets requests finish; a second one does not.

    Ready when every classifier, and every ensemble that takes `images`, has answered a fixed image rightly; other models are loaded, but
    not asked.

    Loading and unloading models, shared memory, logging and tracing are open to the holder of the admin key alone: the header x-admin-key
    over HTTP, triton-grpc-protocol-x-admin-key over gRPC. Triton takes that key on its command line, where other users of this machine can
    see it.

    \b
    Examples:
      defensemble serve model_repository
      defensemble serve model_repository --free-ports
      defensemble serve model_repository --detach
      defensemble serve model_repository --runtime docker --profile gpu-tensorrt
      defensemble serve --stop
      defensemble serve --stop --grpc-port 8001
    """
    from defensemble_server import ServeOptions, read_admin_key, serve, stop_server

    if stop:
        state = stop_server(grpc_port)
        click.echo(f"stopped the server of {state.repository} on gRPC port {state.grpc_port}")
        return

    def say(text: str) -> None:
        click.echo(text, err=True)

    options = ServeOptions(
        runtime=runtime,
        host=host,
        http_port=_port(http_port, 8000, free_ports),
        grpc_port=_port(grpc_port, 8001, free_ports),
        metrics_port=_port(metrics_port, 8002, free_ports),
        profile=profile,
        admin_key=None if admin_key_file is None else read_admin_key(admin_key_file, say),
        drain_s=drain_s,
        expose_outdated_server=expose_outdated_server,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    ready = False
    try:
        with serve(repository, options, say=say, start_timeout_s=start_timeout_s) as server:
            ready = True
            show(server)
            if detach:
                server.detach()
                return
            status = server.wait()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # all is gone: one more finds nothing to end, and would only spoil the exit status
        if not ready:
            raise click.ClickException("interrupted before the server was ready; nothing is left running") from None
        click.echo("stopped", err=True)
        return
    if status != 0:
        raise click.ClickException(f"Triton ended by itself with status {status}; see {server.state.log}")
    click.echo("stopped from elsewhere", err=True)


def show(server: Server) -> None:
    """Print where a server listens, what it serves and what it does not, and how it is stopped."""
    for name, problem in server.problems.items():
        click.echo(f"NOT served: {name}: {problem}", err=True)
    click.echo(f"ready after {server.start_s:.1f} s, serving {', '.join(server.models)}")
    click.echo(f"  gRPC     {server.grpc_url}")
    click.echo(f"  HTTP     {server.http_url}")
    click.echo(f"  metrics  {server.metrics_url}")
    click.echo(f"  log      {server.state.log}")
    click.echo(f"stop it: {this_command()} serve --stop --grpc-port {server.state.grpc_port}")


def _port(given: int | None, usual: int, free: bool) -> int:
    return given if given is not None else 0 if free else usual


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
