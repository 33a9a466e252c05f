"""The classes of our commands: `-v`, `-q` and `--log-level` on each verb, examples that keep their lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import click
import cloup

from .choices import LOG_LEVELS
from .datasets import DatasetType
from .notes import log_records_on_stderr
from .paths import ExistingPath, ExistingRepository

_CHECKED_TYPES = (ExistingPath, ExistingRepository, DatasetType)  # their `check` looks at the files


def _verbosity_options() -> list[click.Parameter]:
    return [
        cloup.Option(["-v", "--verbose"], is_flag=True, help="Print debug messages, and the causes of errors."),
        cloup.Option(["-q", "--quiet"], is_flag=True, help="Print results, the files written, and errors only: no progress, no notes."),
        cloup.Option(
            ["--log-level"], type=click.Choice(LOG_LEVELS), metavar="LEVEL", help=f"Lowest level to print: {', '.join(LOG_LEVELS)}."
        ),
    ]


def _log_level(*, verbose: bool, quiet: bool, log_level: str | None) -> int:
    """Return the level of the `logging` module; `-v`, `-q` and `--log-level` exclude each other."""
    if verbose + quiet + (log_level is not None) > 1:
        raise click.UsageError("--verbose, --quiet and --log-level exclude each other: use one of them")
    if log_level is not None:
        return int(getattr(logging, log_level.upper()))
    return logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO


def _with_kept_lines(text: str | None) -> str | None:
    r"""Replace `\b` in a raw docstring, two characters, by click's mark of a block whose lines are kept: one backspace."""
    return None if text is None else text.replace("\\b\n", "\b\n")


class Verb(cloup.Command):
    """A command with `--verbose`, `--quiet` and `--log-level`.

    Example:
        @cloup.command("fuse", cls=Verb, short_help="Write an ensemble as one ONNX graph.")
    """

    def __init__(self, *args: Any, params: Sequence[click.Parameter] | None = None, help: str | None = None, **settings: Any) -> None:
        super().__init__(*args, params=[*(params or ()), *_verbosity_options()], help=_with_kept_lines(help), **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Configure logging, check that files exist, and run the command."""
        level = _log_level(**{name: ctx.params.pop(name) for name in ("verbose", "quiet", "log_level")})
        if level > logging.DEBUG:  # else gRPC prints the details of a failed TLS handshake by itself
            os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        # The root's context closes last: errors are printed and logged before that.
        ctx.find_root().with_resource(log_records_on_stderr(level))
        for param in self.params:
            if isinstance(param.type, _CHECKED_TYPES) and (value := ctx.params[str(param.name)]) is not None:
                for single_value in value if isinstance(value, tuple) else (value,):
                    param.type.check(single_value, param, ctx)
        return super().invoke(ctx)


class VerbGroup(cloup.Group):
    """A group whose commands are `Verb`s, listed in the order in which they are added.

    Example:
        @cloup.group("profile", cls=VerbGroup, short_help="Manage serving profiles.")
    """

    command_class = Verb

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        super().__init__(*args, help=_with_kept_lines(help), **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order."""
        return list(self.commands)

    def list_sections(self, ctx: click.Context, include_default_section: bool = True) -> list[cloup.Section]:
        """Return the help's lists of commands, unsorted."""
        sections = super().list_sections(ctx, include_default_section)
        for section in sections:
            section.is_sorted = False
        return sections
