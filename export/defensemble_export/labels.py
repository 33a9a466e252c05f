"""Class names from a text file."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from ._errors import ExportError


def labels_from_file(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the logits; UTF-8.

    Raises:
        ExportError: the file cannot be read as such, or a line is blank or says what an earlier one says.
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"{file} {'is no file' if file.exists() else 'does not exist'}: name a text file with one class name a line")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8, one class name a line") from error
    lines = [line.strip() for line in text.replace("\r\n", "\n").rstrip("\n").split("\n")]
    if lines == [""]:
        raise ExportError(f"{file} is empty, expected one class name a line, in the order of the logits")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise ExportError(
                f"{file}, line {number} is blank: each line names a class, in the order of the logits; take it out or fill it"
            )
        if not is_plain(line):
            raise ExportError(f"{file}, line {number}: {line!r} holds a control character, which servers cut names at; take it out")
        if line in seen:
            raise ExportError(f"{file}, line {number}: {line!r} is named in line {seen[line]} already; class names must differ")
        seen[line] = number
    return tuple(lines)


def is_plain(name: str) -> bool:
    """Whether a class name is text on one line, without control characters: Triton cuts names at NUL, and others break lines."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Return the indices of the classes as text, where nobody names them."""
    return tuple(str(index) for index in range(num_classes))
