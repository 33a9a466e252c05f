"""`defensemble doctor`: what this machine can run, what is missing, and the command that mends it."""

from __future__ import annotations

import click


@click.command("doctor", short_help="What this machine can run, what is missing, and the command that mends it.")
@click.option("--url", "urls", multiple=True, metavar="URL", help="Also look at this server (http://HOST:PORT). Repeatable.")
def command(urls: tuple[str, ...]) -> None:
    r"""Check platform, packages, runtime, compiler, backend, ports and running servers; exit status 1 where something must be mended.

    \b
    Examples:
      defensemble doctor
      defensemble doctor --url http://localhost:8000
    """
    from defensemble_server.doctor import FAIL, diagnose

    checks = diagnose(list(urls))
    colours = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{click.style(check.status, fg=colours[check.status])}  {check.name:<{width}}  {check.text}")
        if check.mend:
            click.echo(f"      {'':<{width}}  {check.mend}")
    if any(check.status == FAIL for check in checks):
        raise click.exceptions.Exit(1)
