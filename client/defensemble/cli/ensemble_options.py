"""The options that the verbs of `defensemble ensemble` share: which ensembles, which servers, and how an edit is made."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, with_options


def _replicas(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """URL=FOLDER."""
    found = []
    for value in values:
        url, _, folder = value.partition("=")
        if not url or not folder:
            raise click.BadParameter(f"expected URL=FOLDER, such as http://10.0.0.7:8000=/mnt/seven/models, got {value!r:.120}")
        found.append((url, Path(folder)))
    return tuple(found)


# Where the ensembles are: a folder, and the servers that read it.
target_options = with_options(
    click.option("--repository", type=PATH, default=Path("model_repository"), help="Folder of the models, which the servers read too."),
    click.option(
        "--url",
        "urls",
        multiple=True,
        metavar="URL",
        help="A server that reads the folder, http://HOST:PORT or grpc://HOST:PORT. Repeatable.  [default: those that "
        "`defensemble serve` runs on it here, else none]",
    ),
    click.option(
        "--replica",
        "replicas",
        multiple=True,
        callback=_replicas,
        metavar="URL=FOLDER",
        help="A server with its own folder, instead of --repository and --url. Repeatable: all are edited, or none.",
    ),
    click.option("--files-only", is_flag=True, help="Use the files only: contact no server, even if one runs on the folder here."),
    click.option(
        "--admin-key-file",
        type=PATH,
        help="File with the key that the servers were started with.  [default: the one that `serve` noted here, else none]",
    ),
    click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=60.0, help="Seconds per call."),
    click.option(
        "--wait", "wait_s", type=click.FloatRange(min=0), default=60.0, help="Seconds to wait for another edit of the folder to finish."
    ),
)
# What all edits take.
edit_options = with_options(
    target_options,
    click.option("-m", "--message", help="Reason of the edit, for the history."),
    click.option("--dry-run", is_flag=True, help="Check, say what would change, and change nothing."),
    click.option(
        "--load-timeout", "load_timeout_s", type=click.FloatRange(min=0.1), default=300.0, help="Seconds for a server to load a model."
    ),
    click.option(
        "--drain",
        "drain_s",
        type=click.FloatRange(min=0.1),
        default=10.0,
        help="Seconds to wait until no requests reach a model that is no longer needed; if some still do, it stays loaded.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
)
