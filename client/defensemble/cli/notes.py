"""Progress, notes and log records on standard error.

All of it goes through the standard `logging` module. Progress is at level INFO, a note (`note: ...`) at WARNING, both of the logger
`defensemble.cli`. Records of our packages are printed with their level and logger.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

import click

from .._printable import printable

_LOGGERS = (
    "defensemble",
    "defensemble_export",
    "defensemble_images",
    "defensemble_repository",
    "defensemble_server",
    "defensemble_training",
)
logger = logging.getLogger("defensemble.cli")


def print_progress(text: str) -> None:
    """Print what a command does, on standard error; `--quiet` silences it."""
    logger.info("%s", text)


def print_note(text: str) -> None:
    """Print what a user should know and need not act on; `--quiet` silences it."""
    logger.warning("%s", text)


def shows_progress() -> bool:
    """Return whether progress is printed: not with `--quiet`."""
    return logger.isEnabledFor(logging.INFO)


def shows_notes() -> bool:
    """Return whether notes are printed: not with `--quiet`."""
    return logger.isEnabledFor(logging.WARNING)


class _StderrHandler(logging.Handler):
    """Prints records by `click.echo`, which follows a replaced `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(printable(self.format(record)), err=True)
        except Exception:
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == logger.name and record.levelno == logging.INFO:
            return text
        if record.name == logger.name and record.levelno == logging.WARNING:
            return f"note: {text}"
        return f"{record.levelname.lower()}: {record.name}: {text}"


@contextmanager
def log_records_on_stderr(level: int) -> Iterator[None]:
    """Print our packages' log records from `level` on; restore the loggers at the end of the block."""
    handler = _StderrHandler()
    if level > logging.DEBUG:  # else the client reports each retry; an error at the end counts them
        handler.addFilter(lambda record: record.name != "defensemble" or record.levelno > logging.INFO)
    with ExitStack() as stack:
        for package in map(logging.getLogger, _LOGGERS):
            stack.callback(package.setLevel, package.level)
            stack.callback(package.removeHandler, handler)
            package.setLevel(level)
            package.addHandler(handler)
        yield


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print each warning of our packages once as a note, without its place in the code; leave others as Python shows them."""
    shown: set[str] = set()
    show_others = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if not category.__module__.startswith("defensemble"):
            show_others(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            print_note(str(message))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = show_others
