"""`defensemble serve`: serve a model repository with Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from ..choices import RUNTIMES
from ..options import DEFAULT_REPOSITORY, EXISTING_PATH, LONGEST_S, NumberRange, json_option, make_repository_option
from ..verb import Verb


def _port_option(name: str, default: int, with_servers: str = "") -> Any:
    return click.option(name, type=click.IntRange(0, 65535), metavar="PORT", help=f"0: any free port.  [default: {default}{with_servers}]")


@cloup.command("serve", cls=Verb, short_help="Serve a model repository with Triton.")
@cloup.option_group(
    "Models",
    make_repository_option(
        "Model repository to serve.  [default: model_repository; with --stop and --status: of any running server]", default=None
    ),
    click.option(
        "--profile",
        metavar="PROFILE",
        help="Serving profile: use configs/PROFILE.pbtxt of each model; see `defensemble profile`.",
    ),
    click.option("--strict", is_flag=True, help="Fail unless all models are served."),
)
@cloup.option_group(
    "Triton",
    click.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        default="embedded",
        help="Triton to start. embedded: from its Python wheel; path: `tritonserver` on PATH, as in NVIDIA's container; docker: by "
        "`docker run` (not tested).",
    ),
    click.option(
        "--start-timeout",
        "start_timeout_s",
        type=NumberRange(1, LONGEST_S),
        metavar="SECONDS",
        default=300.0,
        help="Timeout until the models are loaded and their outputs are checked.",
    ),
    click.option(
        "--drain",
        "drain_s",
        type=click.IntRange(0, 1_000_000),
        metavar="SECONDS",
        default=5,
        help="Time for requests to finish when the server stops; later requests get UNAVAILABLE (HTTP 503).",
    ),
    click.option("--no-restart", is_flag=True, help="Do not restart Triton when it crashes or hangs."),
    click.option(
        "--check-interval",
        "check_interval_s",
        type=NumberRange(0, LONGEST_S),
        metavar="SECONDS",
        default=1.0,
        help="Time between two checks of each model by the supervisor; 0: no supervisor.",
    ),
    click.option(
        "--hang-after",
        "hang_after_s",
        type=NumberRange(1, LONGEST_S),
        metavar="SECONDS",
        default=10.0,
        help="Restart Triton when a model has executed nothing for so long while a check waits for its answer.",
    ),
    click.option("--detach", is_flag=True, help="Return when the server is ready, and leave it running in the background."),
)
@cloup.option_group(
    "Network",
    click.option("--host", metavar="HOST", default="127.0.0.1", help="Address to listen on; the embedded Triton refuses public addresses."),
    _port_option("--http-port", 8000),
    _port_option("--grpc-port", 8001, "; with --stop and --status: of any running server"),
    _port_option("--metrics-port", 8002),
    _port_option("--supervisor-port", 8003, "; any free port if another port is set"),
    click.option("--free-ports", is_flag=True, help="Use any free port for each port that is not set."),
    click.option(
        "--admin-key-file", type=EXISTING_PATH, metavar="FILE", help="File with the key that live edits need.  [default: a random key]"
    ),
    click.option(
        "--expose-outdated-server",
        is_flag=True,
        help="Allow the embedded Triton of 2024, which has known vulnerabilities, to listen on a public --host.",
    ),
)
@cloup.option_group(
    "Running servers",
    click.option("--status", is_flag=True, help="Show the running servers, and those that crashed in the last 24 hours."),
    json_option,
    click.option("--stop", is_flag=True, help="Stop the server of --repository or --grpc-port, or the only one."),
)
def command(
    repository: Path | None,
    grpc_port: int | None,
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
    r"""Serve a model repository with Triton until Ctrl-C, which lets requests finish; a second Ctrl-C stops immediately.

    The server is ready when every classifier, and every ensemble with the input `images`, has classified a fixed image correctly. Other
    models are loaded but not called. Models that cannot be served are reported and skipped. The exit status is 1, and nothing is left
    running, if no model or, in a repository with ensembles, no ensemble can be served; with --strict, if any model cannot.

    When Triton crashes or hangs, it is restarted on the same ports with the same key, and its outputs are checked again. After five failed
    restarts in a row, 0, 0.5, 1, 2 and 4 seconds apart, the exit status is 1. `serve --status`, `defensemble doctor` and `defensemble
    ensemble show` list the events. A container is not restarted: give it a restart policy.

    A supervisor sends each model one small request per second. A model whose answers become wrong is loaded again from its file, under a
    new version, by an edit. The supervisor's port has /healthz, /readyz, /status and /metrics.

    Loading and unloading models, shared memory, logging and tracing need the admin key: the header x-admin-key over HTTP,
    triton-grpc-protocol-x-admin-key over gRPC. Triton gets the key on its command line, which other users of this machine can read.

    \b
    Examples:
      defensemble serve --free-ports
      defensemble serve --repository models --detach
      defensemble serve --stop --repository models
    """
    if stop and status:
        raise click.UsageError("--stop and --status exclude each other: use one of them")
    if as_json and not status:
        raise click.UsageError("--json needs --status")
    if status:
        from ..actions.server_status import show_status

        show_status(grpc_port, repository, as_json=as_json)
        return
    from ..actions.serve import run_server, stop_running_server

    if stop:
        stop_running_server(grpc_port, repository)
        return
    run_server(
        repository or DEFAULT_REPOSITORY,
        grpc_port=grpc_port,
        admin_key_file=admin_key_file,
        start_timeout_s=start_timeout_s,
        strict=strict,
        restart=not no_restart,
        detach=detach,
        **settings,
    )
