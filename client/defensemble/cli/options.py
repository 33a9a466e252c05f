"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

AVERAGE = click.Choice(["probabilities", "logits"])
PATH = click.Path(path_type=Path)
RESIZE = click.Choice(["crop", "squash"])
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_Command = TypeVar("_Command", bound=Callable[..., Any])


class GroupInOrder(click.Group):
    """Lists its commands in the order in which they are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(self.commands)


def with_options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """A decorator that adds options to a command, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def numbers(kind: type[int] | type[float], example: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback of click that reads numbers with commas between them, such as `example`; an empty text holds no whole number."""

    def read(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            return tuple(map(kind, value.split(","))) if value or kind is float else ()
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"expected {what} with commas between them, such as {example}, got {value!r:.120}") from None

    return read


def weights_option(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """A callback of click that reads NAME=W, each name once."""
    found: dict[str, float] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"expected {option.metavar}, such as keep0.3=2, got {value!r:.120}")
        if name in found:
            raise click.BadParameter(f"{name} is given two weights: name it once")
        found[name] = weight
    return found


def bytes_from_size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """A callback of click that reads a number of bytes, or one with K, M, G or T (powers of 1024), such as 4G."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", value.strip(), re.ASCII | re.IGNORECASE)
    size = 0 if match is None else float(match[1]) * (1 << _UNITS[match[2].upper()])
    if not 1 <= size < math.inf:
        raise click.BadParameter(f"{value!r:.120} is not a size: expected a number of bytes, or one with K, M, G or T, such as 4G")
    return int(size)


repository_argument = click.argument("repository", type=PATH, default=Path("model_repository"))
call_options = with_options(
    click.option("--batch-size", type=click.IntRange(min=1), help="Images per call.  [default: 64, or the model's largest batch]"),
    click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=60.0, help="Seconds per call."),
)
# The fields of `ReadOptions`: how image files are read for served models.
reading_options = with_options(
    click.option(
        "--resize",
        type=RESIZE,
        is_flag=False,
        flag_value="",  # without a value: an error that names the choices
        help="Bring image files to a model's size: scale and cut out the centre, or scale height and width separately.  [default: as "
        "the model records it; where it records nothing, images must have its size]",
    ),
    click.option(
        "--skip-damaged", is_flag=True, help="Leave out and count images that cannot be decoded, instead of stopping at the first."
    ),
    click.option(
        "--max-memory", callback=bytes_from_size, metavar="SIZE", help="Memory for images, such as 4G.  [default: half of the free memory]"
    ),
)
