"""Measured results as files."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ABOUT_A_RESULT = 1 << 16  # bytes; the noise probe of seven models at ten sigmas wrote 51,039


def check_writable(path: Path) -> None:
    """Find out before slow work whether a result could be written, by a temporary file in its folder.

    Raises:
        OSError: It could not; names the path that was given.
    """
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        place = path.parent
        while not place.exists():  # `write_result` makes it
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(_ABOUT_A_RESULT))


def write_result(path: Path, result: Mapping[str, Any], *, keep: bool = False) -> Path | None:
    """Write a result as JSON, durably, as a whole or not at all.

    Args:
        path: of the file.
        result: values for JSON.
        keep: keep an earlier file as `NAME.1.json` (or the next free number), whose path is returned.

    Raises:
        OSError: It cannot be written, and nothing is left behind; names the path that was given.
    """
    from defensemble_repository.filesystem.atomic_write import rename_durably, sync, temporary_path

    content = (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(path)
        try:
            temporary.write_bytes(content)
            sync([temporary])  # a flush may fail, and then the earlier file has to keep its name
            earlier = _kept_earlier(path) if keep else None
            rename_durably([(temporary, path)])
        finally:
            temporary.unlink(missing_ok=True)
        return earlier


def _kept_earlier(path: Path) -> Path | None:
    """Rename a file to the first free of `NAME.1.json`, `NAME.2.json`, ...; None where there is none."""
    if not path.is_file():
        return None
    number = 0
    while True:
        number += 1
        kept = path.with_suffix(f".{number}{path.suffix}")
        try:
            kept.open("xb").close()  # takes the name, also where two probes end at once
        except FileExistsError:
            continue
        os.replace(path, kept)
        return kept


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Gives errors the name that the user gave: that of a failed `write` has none, others name the temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
