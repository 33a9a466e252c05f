"""`defensemble export-report`: show the verification results of exported models."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from ..options import json_option, repository_option
from ..verb import Verb


@cloup.command("export-report", cls=Verb, short_help="Show the verification results of exported models.")
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@repository_option
@click.option("--layers", "with_layers", is_flag=True, help="Show the layers of mask-aware files, and what each of them computes.")
@json_option
def command(models: tuple[str, ...], repository: Path, with_layers: bool, as_json: bool) -> None:
    r"""Show precision, size, agreement, accuracy and largest error of each MODEL, or of all models, at each exported version.

    Below the table: whether a file is mask-aware and why, and what that saves.

    \b
    Examples:
      defensemble export-report
      defensemble export-report keep0.3 keep0.5
      defensemble export-report keep0.1 --layers
      defensemble export-report --repository models --json
    """
    from ..actions.reports import show_reports

    show_reports(repository, models, as_json=as_json, with_layers=with_layers)
