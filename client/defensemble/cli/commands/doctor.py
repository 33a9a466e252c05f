"""`defensemble doctor`: what this machine can run, what is missing, and the command that mends it."""

from __future__ import annotations

from pathlib import Path

import click

from ..options import PATH


@click.command("doctor", short_help="What this machine can run, what is missing, and the command that mends it.")
@click.option("--url", "urls", multiple=True, metavar="URL", help="Also look at this server (http://HOST:PORT). Repeatable.")
@click.option(
    "--repository",
    type=PATH,
    metavar="FOLDER",
    help="Also look at this model repository's profiles and TensorRT plans.  [default: model_repository, where there is one]",
)
def command(urls: tuple[str, ...], repository: Path | None) -> None:
    r"""Check platform, packages, runtime, compiler, GPU, profiles, plans, ports and servers; exit status 1 where something must be mended.

    \b
    Examples:
      defensemble doctor
      defensemble doctor --url http://localhost:8000
      defensemble doctor --repository model_repository    # does each TensorRT plan fit this machine?
    """
    from defensemble_server import diagnose

    usual = Path("model_repository")
    checks = diagnose(list(urls), usual if repository is None and usual.is_dir() else repository)
    colours = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{click.style(check.status, fg=colours[check.status])}  {check.name:<{width}}  {check.text}")
        if check.fix:
            click.echo(f"      {'':<{width}}  {check.fix}")
    if any(check.status == "FAIL" for check in checks):
        raise click.exceptions.Exit(1)
