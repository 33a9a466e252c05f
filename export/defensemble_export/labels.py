"""Read and check class names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from defensemble_images import normalised

from .errors import ExportError

_MAX_NAMES = 20  # names that an error lists
_MAX_PLACES = 5  # places of each name
_MAX_LENGTH = 60  # characters of each name


def labels_from_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names from a UTF-8 text file, one per line, in the order of the logits. Any line ends are accepted.

    Raises:
        ExportError: The file is missing or not such a text file, or the names are not valid (see `checked_class_names`).

    Example:
        >>> labels_from_file("labels.txt")
        ('cat', 'dog')
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"{file} {'is not a file' if file.exists() else 'does not exist'}: name a text file with one class name per line")
    content = file.read_bytes()
    # Check before decoding: most UTF-16 text without a byte order mark is valid UTF-8.
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(0)) + 1
        raise ExportError(
            f"{file}, line {line} contains a zero byte, as UTF-16 and binary files do: expected UTF-8, one class name per line; "
            "convert UTF-16 with `iconv -f UTF-16 -t UTF-8`"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8, one class name per line") from error
    text = text.rstrip()
    if not text:
        raise ExportError(f"{file} is empty: write one class name per line, in the order of the logits")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return checked_class_names([line.strip() for line in lines], str(file), place="line", first=1)


def checked_class_names(names: Sequence[str], where: str, *, place: str = "class", first: int = 0) -> tuple[str, ...]:
    """Return class names in Unicode NFC, the form in which they are stored and compared.

    Args:
        names: Class names, in the order of the logits.
        where: What errors call the names, such as a file.
        place: What errors call the place of one name, such as "line".
        first: The number of the first place.

    Raises:
        ExportError: A name is empty or contains a control character, or two names are equal in NFC. The message lists the places.
    """
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, first):
        places.setdefault(normalised(name), []).append(number)
    if "" in places:
        raise ExportError(
            f"{where}, {_format_places(place, places[''])} blank: expected one class name per {place}, in the order of the logits; "
            "fill in or remove the blank ones"
        )
    invalid = {name: numbers for name, numbers in places.items() if not _is_plain(name)}
    if invalid:
        raise ExportError(
            f"{where}: class names must be on one line without control characters, got {_format_names(place, invalid)}: "
            "remove these characters"
        )
    repeated = {name: numbers for name, numbers in places.items() if len(numbers) > 1}
    if repeated:
        name, numbers = next(iter(repeated.items()))
        raise ExportError(
            f"{where}: class names must differ after Unicode NFC normalisation, got {_format_names(place, repeated)} more than once: "
            f"rename all but one of each, for example {place} {numbers[1]} to '{_shorten(name)} (2)'"
        )
    return tuple(places)


def first_difference(names: Sequence[str], other_names: Sequence[str]) -> str:
    """Describe the first difference between two lists of class names."""
    if len(names) != len(other_names):
        return f"{len(names)} and {len(other_names)} names"
    pairs = enumerate(zip(names, other_names, strict=True))
    return next(f"{_shorten(name)!r} and {_shorten(other)!r} for class {number}" for number, (name, other) in pairs if name != other)


def _format_names(place: str, places: dict[str, list[int]]) -> str:
    shown = [f"{_shorten(name)!r} ({_format_places(place, numbers)})" for name, numbers in list(places.items())[:_MAX_NAMES]]
    more = len(places) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _format_places(place: str, numbers: list[int]) -> str:
    plural = "" if len(numbers) == 1 else "es" if place.endswith("s") else "s"
    more = len(numbers) - _MAX_PLACES
    return f"{place}{plural} {', '.join(map(str, numbers[:_MAX_PLACES]))}" + (f" and {more} more" if more > 0 else "")


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LENGTH else f"{name[:_MAX_LENGTH]}..."


def _is_plain(name: str) -> bool:
    """Return whether a name is one line without control characters: Triton cuts names at NUL, and line breaks break label files."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Return the class indices as text, for networks without class names."""
    return tuple(str(index) for index in range(num_classes))
