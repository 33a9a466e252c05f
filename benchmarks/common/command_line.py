"""How every benchmark runs from the command line: its options, its progress, its result and the page about it, its exit status."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from benchmarks.common.figures import exit_status
from defensemble.results import check_writable, write_result
from defensemble_repository.filesystem.atomic_write import write_atomic

CORES = 2

OnProgress = Callable[[str], None]


def silent(text: str) -> None:
    """A `OnProgress` that prints nothing."""


@dataclass(frozen=True)
class Options:
    """The options of every benchmark: the result's file, or None; a quick look; a sentence for the page; the seed."""

    out: Path | None
    quick: bool
    note: str | None
    seed: int


def benchmark_command(
    script: str, *, quick: str, seed: str, result: str | None = None, example: str = ""
) -> Callable[[Callable[..., NoReturn]], click.Command]:
    """Make a command with the options of every benchmark, and the function's own; it is called with `Options` and its own.

    Args:
        script: name of the script, without `.py`.
        quick: what `--quick` does less of.
        seed: what the seed is of.
        result: name of the result in `docs/results`; that of the script by default.
        example: words that make one more example.
    """
    lines = [f"--json docs/results/{result or script}.json    # and {result or script}.md next to it", "--quick", example]
    epilog = "\b\nExamples:\n" + "\n".join(f"  python benchmarks/{script}.py {line}" for line in lines if line)
    options = [
        click.option(
            "--json",
            "out",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write the result to FILE, and the page about it next to it.",
        ),
        click.option("--quick", is_flag=True, help=f"A quick look: {quick}; it proves nothing."),
        click.option("--note", metavar="TEXT", help="A sentence for the page, such as what else the machine was doing."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=f"Seed of {seed}."),
    ]

    def decorate(function: Callable[..., NoReturn]) -> click.Command:
        @functools.wraps(function)
        def command(out: Path | None, quick: bool, note: str | None, seed: int, **own: Any) -> NoReturn:
            function(Options(out, quick, note, seed), **own)

        for option in reversed(options):
            command = option(command)
        return click.command(epilog=epilog)(command)

    return decorate


def run(
    measure: Callable[[OnProgress], Mapping[str, Any]],
    page: Callable[[Mapping[str, Any], str], str],
    options: Options,
    *,
    errors: tuple[type[Exception], ...],
    cores: int | None = CORES,
) -> NoReturn:
    """Measure, write the result and its page, print the page, and exit: with status 1 where a figure does not hold.

    Args:
        measure: gets a function that prints a line of progress, and returns the result with its `figures`.
        page: Markdown from a result and the name of its file.
        options: of the command line.
        errors: what `measure` raises on purpose.
        cores: to which this process, and what it starts, is pinned; None: as it is.

    Raises:
        click.ClickException: One of `errors`, or an OSError.
    """
    console = Console()
    began = time.monotonic()

    def on_progress(text: str) -> None:
        seconds = time.monotonic() - began
        console.print(f"[dim]{seconds:5.0f} s[/dim]  ", end="", highlight=False)
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    if cores is not None:
        pin(cores)
    try:
        if options.out is not None:
            check_writable(options.out)
        measured = measure(on_progress)
        result = {**measured, "quick": options.quick, "note": options.note, "duration_s": round(time.monotonic() - began, 1)}
        if options.out is not None:
            write_result(options.out, result)
            write_atomic(options.out.with_suffix(".md"), page(result, options.out.name).encode())
    except (OSError, *errors) as error:  # type: ignore[misc]
        raise click.ClickException(str(error)) from error
    console.print(page(result, "the JSON" if options.out is None else options.out.name), highlight=False, markup=False, soft_wrap=True)
    raise SystemExit(exit_status(result["figures"]))


def pin(cores: int) -> None:
    """Keep this process, and what it starts, on so many cores: goals, pools and graphs of two threads are made for two.

    Raises:
        click.ClickException: it may use fewer.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores:
        raise click.ClickException(f"this compares forms on {cores} cores, and may use {len(usable)} here: allow it more")
    os.sched_setaffinity(0, usable[:cores])
