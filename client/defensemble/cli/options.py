"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import cloup

from .choices import AVERAGES, RESIZES
from .datasets import DatasetLocation as DatasetLocation, dataset_option as dataset_option
from .paths import (
    EXISTING_PATH as EXISTING_PATH,
    EXISTING_REPOSITORY,
    IMAGE_SOURCE as IMAGE_SOURCE,
    PATH as PATH,
    SERVER_URL as SERVER_URL,
    AnyPath,
)

if TYPE_CHECKING:
    from .._transport.base import TlsFiles

AVERAGE = click.Choice(AVERAGES)
RESIZE = click.Choice(RESIZES)
LONGEST_S = 1e6  # the longest timeout, which the client and all timers accept
DEFAULT_REPOSITORY = Path("model_repository")
_SIZE_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options to a command, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def numbers(kind: type[int] | type[float], example: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a click callback that parses numbers with commas between them; an empty text is no integers.

    Args:
        kind: `int` or `float`.
        example: A correct value, for the error message.
    """

    def parse(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            return tuple(map(kind, value.split(","))) if value or kind is float else ()
        except ValueError:
            noun = "integers" if kind is int else "numbers"
            raise click.BadParameter(f"expected {noun} with commas between them, such as {example}, got {value!r:.120}") from None

    return parse


class NumberRange(click.FloatRange):
    """A finite number in a range. NaN compares as neither too small nor too large, and is refused too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or raise `click.BadParameter` if it is outside the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number in the range {self._describe_range()}.", param, ctx)
        return number


class ChoiceList(click.ParamType[list[str]]):
    """Choices with commas between them, as a list."""

    name = "choices"

    def __init__(self, choices: Sequence[str]) -> None:
        self._choices = tuple(choices)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Return the list, or raise `click.BadParameter` if one of them is no choice."""
        if isinstance(value, list):
            return value
        chosen = [name.strip() for name in str(value).split(",") if name.strip()]
        for name in chosen:
            if name not in self._choices:
                self.fail(f"{name!r:.120} is not one of {', '.join(self._choices)}", param, ctx)
        return chosen


def tls_files(urls: Sequence[str], ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> TlsFiles | None:
    """Return the values of `tls_options`; None if there are none.

    Args:
        urls: The servers; files without a server that uses them are a mistake.
        ca_file: Value of `--ca-file`.
        cert_file: Value of `--cert-file`.
        key_file: Value of `--key-file`.

    Raises:
        click.UsageError: The key has no certificate, or no server is called over TLS.
    """
    from .._transport.base import TlsFiles

    if ca_file is cert_file is key_file is None:
        return None
    if key_file is not None and cert_file is None:
        raise click.UsageError("--key-file is the key of a certificate: pass --cert-file, too")
    if not any(url.startswith(("https://", "grpcs://")) for url in urls):
        raise click.UsageError(
            f"--ca-file, --cert-file and --key-file are for https:// and grpcs://, got {', '.join(urls)}: change the URL, or omit them"
        )
    return TlsFiles(ca_file, cert_file, key_file)


def weights_option(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Parse NAME=W, each name once (a click callback)."""
    weights: dict[str, float] = {}
    for value in values:
        name, _, number = value.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(f"expected {option.metavar}, such as keep0.3=2, got {value!r:.120}")
        if name in weights:
            raise click.BadParameter(f"{name} has two weights; expected one")
        weights[name] = weight
    return weights


def bytes_from_size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Parse a number of bytes, optionally with K, M, G or T (powers of 1024), such as 4G (a click callback)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", value.strip(), re.ASCII | re.IGNORECASE)
    size = 0 if match is None else float(match[1]) * (1 << _SIZE_UNITS[match[2].upper()])
    if not 1 <= size < math.inf:
        raise click.BadParameter(f"{value!r:.120} is not a size; expected a number of bytes, or one with K, M, G or T, such as 4G")
    return int(size)


def make_timeout_option(help: str, default: float | None = None) -> Callable[[Any], Any]:
    """Return the option `--timeout`.

    Args:
        help: What it limits.
        default: Its default in seconds; None: the command decides.
    """
    kind = NumberRange(0, LONGEST_S, min_open=True)
    return click.option("--timeout", "timeout_s", type=kind, metavar="SECONDS", default=default, help=help)


def make_repository_option(
    help: str, *, default: Path | None = DEFAULT_REPOSITORY, type: AnyPath = EXISTING_REPOSITORY
) -> Callable[[Any], Any]:
    """Return the option `--repository`, which is also read from DEFENSEMBLE_REPOSITORY.

    Args:
        help: What the folder is used for.
        default: The folder without the option; None: the command decides.
        type: `PATH` for commands that create the folder.
    """
    return click.option(
        "--repository", type=type, metavar="FOLDER", envvar="DEFENSEMBLE_REPOSITORY", show_envvar=True, default=default, help=help
    )


_REPOSITORY_HELP = "Model repository: the folder that Triton loads."
repository_option = make_repository_option(_REPOSITORY_HELP)
new_repository_option = make_repository_option(_REPOSITORY_HELP, type=PATH)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
call_options = cloup.option_group(
    "Requests",
    click.option(
        "--batch-size", type=click.IntRange(min=1), metavar="N", help="Images per request.  [default: 64, or the model's max_batch_size]"
    ),
    make_timeout_option("Timeout of a batch, with its retries.", 60.0),
)
SERVER_VARIABLE = "DEFENSEMBLE_URL"  # of the servers that commands call by default
tls_options = (
    click.option(
        "--ca-file",
        type=EXISTING_PATH,
        metavar="FILE",
        help="Certificates of the authorities to trust, PEM, for https:// and grpcs://.  [default: the system's]",
    ),
    click.option("--cert-file", type=EXISTING_PATH, metavar="FILE", help="Client certificate, PEM, for servers that ask for one."),
    click.option("--key-file", type=EXISTING_PATH, metavar="FILE", help="Private key of --cert-file, PEM."),
)
# The fields of `ReadOptions`: how image files are read for served models.
reading_options = cloup.option_group(
    "Reading images",
    click.option(
        "--resize",
        type=RESIZE,
        is_flag=False,
        flag_value="",  # without a value: an error that names the choices
        help="How to bring images to a model's size. crop: scale, then cut out the centre; squash: scale height and width separately.  "
        "[default: as the model records it; without a record, images must have its size]",
    ),
    click.option("--skip-damaged", is_flag=True, help="Skip and count images that cannot be decoded, instead of stopping at the first."),
    click.option(
        "--max-memory", callback=bytes_from_size, metavar="SIZE", help="Memory for images, such as 4G.  [default: half of the free memory]"
    ),
)
