"""Options of the commands that read image files."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import click

RESIZE = click.Choice(["crop", "squash"])
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def bytes_from_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read the value of an option such as `--max-memory 4G`; a callback of click.

    Args:
        ctx: of the command.
        param: the option.
        value: a number with K, M, G or T (powers of 1024), or of bytes.

    Raises:
        click.BadParameter: it is something else.
    """
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", value.strip(), re.ASCII | re.IGNORECASE)
    size = 0 if match is None else float(match[1]) * (1 << _UNITS[match[2].upper()])
    if not 1 <= size < math.inf:
        raise click.BadParameter(
            f"{value!r:.120} is not a size: expected a number of bytes, or one with K, M, G or T, such as 4G", ctx, param
        )
    return int(size)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that reads image files for served models: the fields of `ReadOptions`."""
    options = [
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
            "--max-memory",
            callback=bytes_from_size,
            metavar="SIZE",
            help="Memory that the images may take, such as 4G.  [default: half of the free memory]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
