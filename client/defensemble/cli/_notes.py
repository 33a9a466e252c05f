"""Warnings of our packages on the command line: a line each, without the place in the code."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning that one of our packages gives as one line on standard error, once; leave others as Python shows them."""
    shown: set[str] = set()
    others = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if not category.__module__.startswith("defensemble"):
            others(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            click.echo(f"note: {message}", err=True)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others
