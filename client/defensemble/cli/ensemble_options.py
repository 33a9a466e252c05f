"""The options that the verbs of `defensemble ensemble` share: folders and servers, and how an edit is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from .actions.ensemble_settings import EditSettings, TargetSettings
from .options import EXISTING_PATH, LONGEST_S, PATH, NumberRange, repository_option, with_options

_SECONDS = NumberRange(0.1, LONGEST_S)
_TARGETS = ("repository", "urls", "replicas", "files_only", "admin_key_file", "timeout_s", "wait_s")


def _parse_replicas(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """Parse URL=FOLDER (a click callback)."""
    replicas = []
    for value in values:
        url, _, folder = value.partition("=")
        if not url or not folder:
            raise click.BadParameter(f"expected URL=FOLDER, such as http://10.0.0.7:8000=/mnt/seven/models, got {value!r:.120}")
        replicas.append((url, PATH.convert(folder, option, context)))
    return tuple(replicas)


_wait_option = click.option(
    "--wait", "wait_s", type=NumberRange(0, LONGEST_S), metavar="SECONDS", default=60.0, help="Time to wait for another edit to finish."
)
_target_options = (
    repository_option,
    click.option(
        "--url",
        "urls",
        multiple=True,
        metavar="URL",
        help="Server that reads the folder, http://HOST:PORT or grpc://HOST:PORT. Repeatable.  [default: the servers that "
        "`defensemble serve` runs here on the folder]",
    ),
    click.option(
        "--replica",
        "replicas",
        multiple=True,
        callback=_parse_replicas,
        metavar="URL=FOLDER",
        help="Server with a folder of its own, instead of --repository and --url. Repeatable; an edit changes all of them or none.",
    ),
    click.option("--files-only", is_flag=True, help="Contact no server, even if one runs here on the folder."),
    click.option(
        "--admin-key-file",
        type=EXISTING_PATH,
        metavar="FILE",
        help="Admin key of the servers.  [default: the key that `defensemble serve` recorded here, if any]",
    ),
    click.option("--timeout", "timeout_s", type=_SECONDS, metavar="SECONDS", default=60.0, help="Timeout per request."),
)
# For verbs that look.
target_options = cloup.option_group("Repository and servers", *_target_options)
# For verbs that write, and therefore wait for the edits of others.
writing_target_options = cloup.option_group("Repository and servers", *_target_options, _wait_option)
# For edits.
edit_options = with_options(
    cloup.option_group(
        "Edit",
        click.option("-m", "--message", metavar="REASON", help="Reason of the edit, for the history."),
        click.option("--dry-run", is_flag=True, help="Check the edit and print what would change, but change nothing."),
        click.option(
            "--load-timeout", "load_timeout_s", type=_SECONDS, metavar="SECONDS", default=300.0, help="Timeout for loading a model."
        ),
        click.option(
            "--idle-timeout",
            "idle_timeout_s",
            type=_SECONDS,
            metavar="SECONDS",
            default=10.0,
            help="Time to wait for the last requests to a model that is no longer needed; if they do not end, it stays loaded.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ),
    writing_target_options,
)


def edit_settings(options: dict[str, Any]) -> tuple[TargetSettings, EditSettings]:
    """Return the values of `edit_options`."""
    targets = {name: options.pop(name) for name in _TARGETS}
    return TargetSettings(**targets), EditSettings(**options)
