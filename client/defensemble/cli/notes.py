"""Notes on the command line: a line each on standard error, `note: ...`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click


def print_progress(text: str) -> None:
    """Print what a command does, on standard error."""
    click.echo(text, err=True)


def print_note(text: str) -> None:
    """Print what a user should know, and what stops nothing."""
    click.echo(f"note: {text}", err=True)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning of our packages as a note, once, without its place in the code; leave others as Python shows them."""
    shown: set[str] = set()
    others = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if not category.__module__.startswith("defensemble"):
            others(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            print_note(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others
