"""How a benchmark runs from the command line: what it says on the way, and the result and its page, written together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from benchmarks.figures import exit_status
from benchmarks.serving.processes import pin
from defensemble.results.result_file import check_writable, write_result

Say = Callable[[str], None]


def run_and_tell(
    measured: Callable[[Say], Mapping[str, Any]],
    page: Callable[[Mapping[str, Any], str], str],
    *,
    out: Path | None,
    quick: bool,
    note: str | None,
    errors: tuple[type[Exception], ...],
) -> NoReturn:
    """Measures on two cores, writes the result to `out` and its page beside it, prints the page, and exits: 1 where a figure fails.

    Raises:
        click.ClickException: One of `errors`.
    """
    console = Console()
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {text}", highlight=False, soft_wrap=True)

    pin()
    try:
        if out is not None:
            check_writable(out)
        result = {**measured(say), "quick": quick, "note": note, "duration_s": round(time.monotonic() - began, 1)}
        if out is not None:
            write_result(out, result)
            out.with_suffix(".md").write_text(page(result, out.name))
    except errors as error:
        raise click.ClickException(str(error)) from error
    console.print(page(result, "the JSON" if out is None else out.name), highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(exit_status(result["figures"]))
