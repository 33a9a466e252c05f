"""Class names: from a text file, and what they have to be."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from defensemble_images import normalised

from .errors import ExportError

_MOST_NAMES = 20  # that an error lists
_MOST_PLACES = 5  # of each
_LONGEST_NAME = 60


def labels_from_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the logits; UTF-8, with line ends of any system.

    Raises:
        ExportError: the file cannot be read as such, or its names are not those of classes (`checked_class_names`).
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"{file} {'is no file' if file.exists() else 'does not exist'}: name a text file with one class name a line")
    content = file.read_bytes()
    # Before the decoding: most of UTF-16 without a byte order mark is valid UTF-8.
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(0)) + 1
        raise ExportError(
            f"{file}, line {line} holds a zero byte, as UTF-16 and binary files do: expected UTF-8, one class name a line; "
            "convert UTF-16 with `iconv -f UTF-16 -t UTF-8`"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8, one class name a line") from error
    text = text.rstrip()
    if not text:
        raise ExportError(f"{file} is empty, expected one class name a line, in the order of the logits")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return checked_class_names([line.strip() for line in lines], str(file), place="line", first=1)


def checked_class_names(names: Sequence[str], where: str, *, place: str = "class", first: int = 0) -> tuple[str, ...]:
    """Return class names, in the order of the logits, in Unicode NFC, in which they are stored and compared.

    Errors call all of them `where`, and the place of one `place` and its number, from `first` on.

    Raises:
        ExportError: names are empty, hold a control character, or are equal in NFC; it lists them with their places.
    """
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, first):
        places.setdefault(normalised(name), []).append(number)
    if "" in places:
        raise ExportError(
            f"{where}, {_numbered(place, places[''])} blank: each {place} names a class, in the order of the logits; fill or remove it"
        )
    broken = {name: numbers for name, numbers in places.items() if not _is_plain(name)}
    if broken:
        raise ExportError(
            f"{where}: expected class names on one line without control characters, got {_listed(place, broken)}: remove these characters"
        )
    repeated = {name: numbers for name, numbers in places.items() if len(numbers) > 1}
    if repeated:
        name, numbers = next(iter(repeated.items()))
        raise ExportError(
            f"{where}: class names must differ after Unicode NFC normalisation, got {_listed(place, repeated)} more than once: rename all "
            f"but one of each, such as {place} {numbers[1]} to '{_short(name)} (2)'"
        )
    return tuple(places)


def first_difference(some: Sequence[str], others: Sequence[str]) -> str:
    """Describe the first place where two lists of class names differ."""
    if len(some) != len(others):
        return f"{len(some)} and {len(others)} of them"
    pairs = enumerate(zip(some, others, strict=True))
    return next(f"{_short(one)!r} and {_short(other)!r} for class {number}" for number, (one, other) in pairs if one != other)


def _listed(place: str, places: dict[str, list[int]]) -> str:
    shown = [f"{_short(name)!r} ({_numbered(place, numbers)})" for name, numbers in list(places.items())[:_MOST_NAMES]]
    more = len(places) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _numbered(place: str, numbers: list[int]) -> str:
    plural = "" if len(numbers) == 1 else "es" if place.endswith("s") else "s"
    more = len(numbers) - _MOST_PLACES
    return f"{place}{plural} {', '.join(map(str, numbers[:_MOST_PLACES]))}" + (f" and {more} more" if more > 0 else "")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _is_plain(name: str) -> bool:
    """Whether a name is text on one line, without control characters: Triton cuts names at NUL, and others break lines."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Return the indices of the classes as text, where nobody names them."""
    return tuple(str(index) for index in range(num_classes))
