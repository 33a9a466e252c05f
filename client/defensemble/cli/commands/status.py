"""`defensemble status`: what servers serve, and their load."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from ..options import LONGEST_S, SERVER_URL, SERVER_VARIABLE, NumberRange, make_timeout_option, tls_files, tls_options
from ..verb import Verb


@cloup.command("status", cls=Verb, short_help="Show what servers serve, and their load.")
@cloup.argument(
    "urls",
    nargs=-1,
    type=SERVER_URL,
    metavar="[URL]...",
    envvar=SERVER_VARIABLE,
    help="Servers: http://HOST:PORT, https://, grpc:// or grpcs://.  [env var: DEFENSEMBLE_URL; default: all that `defensemble serve` runs "
    "on this machine]",
)
@cloup.option_group(
    "Output",
    click.option("--watch", is_flag=True, help="Refresh the tables until Ctrl-C, with rates."),
    click.option(
        "--interval",
        "interval_s",
        type=NumberRange(0.1, LONGEST_S),
        metavar="SECONDS",
        default=2.0,
        help="Time between two looks of --watch.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables; with --watch, a line for each look."),
)
@cloup.option_group(
    "Requests",
    make_timeout_option("Timeout per request.", 5.0),
    *tls_options,
)
def command(
    urls: tuple[str, ...],
    watch: bool,
    interval_s: float,
    as_json: bool,
    timeout_s: float,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
) -> None:
    r"""Show what servers serve: models and versions, requests, latency and failures. No model is run for it.

    Latency and time in the queue are means: since a model was loaded, or with --watch of the last interval, as are the rates. The requests
    of an ensemble count for its members, too. The exit status is 1 if a server does not respond. `defensemble serve --status` shows logs
    and faults of local servers.

    \b
    Examples:
      defensemble status
      defensemble status --watch
      defensemble status http://10.0.0.7:8000 grpc://10.0.0.8:8001 --json
    """
    from ...ensembles.local_servers import find_local_urls
    from ..actions.status import show_status
    from ..notes import print_note

    urls = urls or tuple(find_local_urls(print_note, "a URL"))
    tls = tls_files(urls, ca_file, cert_file, key_file)
    if not show_status(urls, interval_s=interval_s if watch else None, as_json=as_json, timeout_s=timeout_s, tls=tls):
        raise click.exceptions.Exit(1)
