"""Write results to files."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

_TYPICAL_RESULT_BYTES = 1 << 16  # the noise probe of seven models at ten sigmas wrote 51,039


def check_writable(path: Path) -> None:
    """Check before slow work that a result can be written, with a temporary file in its folder.

    Raises:
        OSError: It cannot be written. The error names `path`.
    """
    from defensemble_repository.filesystem.regular_files import check_replaceable

    with _errors_name(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        check_replaceable(path)
        folder = path.parent
        while not folder.exists():  # `write_result` creates it
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TYPICAL_RESULT_BYTES))


def write_result(path: Path, result: Mapping[str, Any], *, keep_earlier: bool = False) -> Path | None:
    """Write a result as JSON, durably and atomically. Returns the path of a kept earlier file, or None.

    Args:
        path: Path of the file.
        result: Values for JSON.
        keep_earlier: Keep an earlier file as `NAME.1.json` (or the next free number).

    Raises:
        OSError: The file cannot be written. The error names `path`, and nothing is left behind.
    """
    content = json.dumps(result, indent=2, allow_nan=False) + "\n"
    return write_text(path, lambda file: file.write(content), keep_earlier=keep_earlier)


def write_text(path: Path, write: Callable[[TextIO], object], *, keep_earlier: bool = False) -> Path | None:
    """Write a text file, durably and atomically. Returns the path of a kept earlier file, or None.

    Args:
        path: Path of the file.
        write: Writes the text to the file that it gets, as UTF-8. Bytes of file names that are not UTF-8 become escapes.
        keep_earlier: Keep an earlier file as `NAME.1.html` (or the next free number).

    Raises:
        OSError: The file cannot be written. The error names `path`, and nothing is left behind.
    """
    from defensemble_repository.filesystem.atomic_write import rename_durably, sync, temporary_path

    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
                write(file)
            sync([temporary])  # if this fails, the earlier file must keep its name
            earlier = _keep_earlier(path) if keep_earlier else None
            rename_durably([(temporary, path)])
        finally:
            temporary.unlink(missing_ok=True)
        return earlier


def _keep_earlier(path: Path) -> Path | None:
    """Rename a file to the first free of `NAME.1.json`, `NAME.2.json`, ..., and return that; None if there is no file."""
    if not path.is_file():
        return None
    number = 0
    while True:
        number += 1
        kept = path.with_suffix(f".{number}{path.suffix}")
        try:
            kept.open("xb").close()  # reserves the name, in case two probes end at the same time
        except FileExistsError:
            continue
        os.replace(path, kept)
        return kept


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Make errors name the user's path: the error of a failed `write` has no name, and others name the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
