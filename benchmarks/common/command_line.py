"""The command line of every benchmark: options, progress, result and its page, exit status."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
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
_LARGEST_SEED = 2**32 - 1

OnProgress = Callable[[str], None]


def silent(text: str) -> None:
    """Print nothing; an `OnProgress`."""


@dataclass(frozen=True)
class Options:
    """The options that every benchmark has.

    Attributes:
        out: File of the result, or None.
        quick: Whether to make only a short run.
        note: Sentence for the page, or None.
        seed: Seed of everything that is random.
    """

    out: Path | None
    quick: bool
    note: str | None
    seed: int


def benchmark_command(
    script: str, *, quick: str, seed: str, result: str | None = None, example: str = ""
) -> Callable[[Callable[..., NoReturn]], click.Command]:
    """Return a decorator that makes a function a command with the options of every benchmark.

    The function is called with `Options` and with the values of its own options.

    Args:
        script: Name of the script, without `.py`.
        quick: What `--quick` shortens.
        seed: What the seed determines.
        result: Name of the result in `docs/results`; by default the name of the script.
        example: Arguments of one more example.
    """
    lines = [f"--json docs/results/{result or script}.json    # also writes {result or script}.md", "--quick", example]
    epilog = "\b\nExamples:\n" + "\n".join(f"  python benchmarks/{script}.py {line}" for line in lines if line)
    options = [
        click.option(
            "--json",
            "out",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write the result to FILE, and its page to the same folder.",
        ),
        click.option("--quick", is_flag=True, help=f"Make a short run for a first impression: {quick}."),
        click.option("--note", metavar="TEXT", help="Add a sentence to the page, such as what else the machine was running."),
        click.option("--seed", type=click.IntRange(0, _LARGEST_SEED), default=0, show_default=True, help=f"Seed of {seed}."),
    ]

    def decorate(function: Callable[..., NoReturn]) -> click.Command:
        @functools.wraps(function)
        def command(out: Path | None, quick: bool, note: str | None, seed: int, **own_options: Any) -> NoReturn:
            function(Options(out, quick, note, seed), **own_options)

        for option in reversed(options):
            command = option(command)
        return click.command(epilog=epilog)(command)

    return decorate


def refuse_nan(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN, which `click.FloatRange` accepts. A callback of an option."""
    if value is not None and math.isnan(value):
        raise click.BadParameter(f"expected a number, got {value}")
    return value


def run(
    measure: Callable[[OnProgress], Mapping[str, Any]],
    page: Callable[[Mapping[str, Any], str], str],
    options: Options,
    *,
    errors: tuple[type[Exception], ...],
    cores: int | None = CORES,
) -> NoReturn:
    """Measure, write the result and its page, print the page, and exit. The exit status is 1 if a figure misses its goal.

    Args:
        measure: Called with a function that prints a line of progress; returns the result with its `figures`.
        page: Returns Markdown for a result and the name of its file.
        options: The options of the command line.
        errors: The exceptions that `measure` raises deliberately.
        cores: Number of cores for this process and its children; None for no limit.

    Raises:
        click.ClickException: One of `errors` or an `OSError` was raised.
    """
    console = Console()
    began = time.monotonic()

    def on_progress(text: str) -> None:
        seconds = time.monotonic() - began
        console.print(f"[dim]{seconds:5.0f} s[/dim]  ", end="", highlight=False)
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that servers and temporary folders do not stay
    if cores is not None:
        pin_to_cores(cores)
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


def pin_to_cores(cores: int) -> None:
    """Pin this process and its children to a number of cores. The goals, thread pools and graphs are designed for two.

    Raises:
        click.ClickException: Fewer cores are available.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < cores:
        raise click.ClickException(
            f"this benchmark needs {cores} cores, but may use only {len(usable)}: allow it more, such as with taskset"
        )
    os.sched_setaffinity(0, usable[:cores])
