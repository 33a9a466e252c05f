"""How the reader can call this command again (not everybody has the environment's `bin` on PATH), and options of several commands."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import click

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def this_command() -> str:
    """`defensemble` where a shell would find this very installation by that name, else the words that run it."""
    script = Path(sys.executable).with_name("defensemble")
    found = shutil.which("defensemble")
    if found is not None and Path(found).resolve() == script.resolve():
        return "defensemble"
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m defensemble"


def as_typed(*, with_option: str | None = None) -> str:
    """What follows `defensemble` on the command line, quoted for a shell; with an option more, where it is not there yet."""
    words = sys.argv[1:]
    if with_option is not None and with_option not in words:
        words = [*words[:1], with_option, *words[1:]]
    return shlex.join(words)


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
        raise click.BadParameter(f"{value!r} is not a size: expected a number of bytes, or one with K, M, G or T, such as 4G", ctx, param)
    return int(size)
