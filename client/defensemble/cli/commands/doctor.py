"""`defensemble doctor`: check this machine and print fixes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import cloup

from ..options import DEFAULT_REPOSITORY, json_option, make_repository_option
from ..verb import Verb

SCHEMA = "defensemble.doctor/1"
_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


@cloup.command("doctor", cls=Verb, short_help="Check this machine and print fixes.")
@make_repository_option(
    "Model repository whose profiles and TensorRT plans are checked too.  [default: model_repository, if it exists]", default=None
)
@click.option("--url", "urls", multiple=True, metavar="URL", help="Check this server too, http://HOST:PORT. Repeatable.")
@json_option
def command(repository: Path | None, urls: tuple[str, ...], as_json: bool) -> None:
    r"""Check platform, packages, runtime, compiler, GPU, profiles, TensorRT plans, ports and servers.

    Each check prints PASS, WARN or FAIL, and a command that fixes what is wrong. The exit status is 1 if a check fails.

    \b
    Examples:
      defensemble doctor
      defensemble doctor --url http://localhost:8000
      defensemble doctor --repository model_repository --json
    """
    from defensemble_server import diagnose

    if repository is None and DEFAULT_REPOSITORY.is_dir():
        repository = DEFAULT_REPOSITORY
    checks = diagnose(list(urls), repository)
    if as_json:
        values = [{"name": check.name, "status": check.status, "text": check.text, "fix": check.fix} for check in checks]
        click.echo(json.dumps({"schema": SCHEMA, "checks": values}, indent=2))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            click.echo(f"{click.style(check.status, fg=_COLOURS[check.status])}  {check.name:<{width}}  {check.text}")
            if check.fix:
                click.echo(f"      {'':<{width}}  {check.fix}")
    if any(check.status == "FAIL" for check in checks):
        raise click.exceptions.Exit(1)
