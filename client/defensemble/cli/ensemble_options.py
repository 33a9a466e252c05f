"""The options that the verbs of `defensemble ensemble` share: which ensembles, which servers, and how an edit is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])
_EXAMPLE_OF_A_WEIGHT = "a vote and its weight, such as keep0.3=2 or keep0.3@2=0.5"


def weights_option(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """MODEL=W or MODEL@VERSION=W, each named once."""
    found: dict[str, float] = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = None
        if not equals or not name or weight is None:
            raise click.BadParameter(f"expected {_EXAMPLE_OF_A_WEIGHT}, got {value!r:.120}")
        if name in found:
            raise click.BadParameter(f"{name} is given two weights: name it once")
        found[name] = weight
    return found


def replicas_option(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """URL=FOLDER."""
    found = []
    for value in values:
        url, equals, folder = value.partition("=")
        if not equals or not url or not folder:
            raise click.BadParameter(f"expected URL=FOLDER, such as http://10.0.0.7:8000=/mnt/seven/models, got {value!r:.120}")
        found.append((url, Path(folder)))
    return tuple(found)


def target_options(command: _Command) -> _Command:
    """Where the ensembles are: a folder, and the servers that read it."""
    options = [
        click.option(
            "--repository",
            type=click.Path(path_type=Path),
            default=Path("model_repository"),
            show_default=True,
            help="Folder of the models, which the servers read too.",
        ),
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
            callback=replicas_option,
            metavar="URL=FOLDER",
            help="A server with its own folder, instead of --repository and --url. Repeatable: all are edited, or none.",
        ),
        click.option("--files-only", is_flag=True, help="Use the files only: contact no server, even if one runs on the folder here."),
        click.option(
            "--admin-key-file",
            type=click.Path(path_type=Path),
            help="File with the key that the servers were started with.  [default: the one that `serve` noted here, else none]",
        ),
        click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds per call."),
        click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(min=0),
            default=60.0,
            show_default=True,
            help="Seconds to wait for another edit of the folder to finish.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def edit_options(command: _Command) -> _Command:
    """What all edits take."""
    options = [
        click.option("-m", "--message", help="Reason of the edit, for the history."),
        click.option("--dry-run", is_flag=True, help="Check, say what would change, and change nothing."),
        click.option(
            "--load-timeout",
            "load_timeout_s",
            type=click.FloatRange(min=0.1),
            default=300.0,
            show_default=True,
            help="Seconds for a server to load a model.",
        ),
        click.option(
            "--drain",
            "drain_s",
            type=click.FloatRange(min=0.1),
            default=10.0,
            show_default=True,
            help="Seconds to wait until no requests reach a model that is no longer needed; if some still do, it stays loaded.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return target_options(command)
