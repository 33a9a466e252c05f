"""Files that are there as a whole, or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_aside(target: Path, content: bytes) -> None:
    """Write a file aside and rename it: at every moment the old file is there, or the whole new one.

    Raises:
        OSError: it cannot be written; names the target, and nothing is left.
    """
    aside = name_aside(target)
    try:
        try:
            with aside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise named(error, target) from error


def name_aside(target: Path) -> Path:
    """Return a name beside a file that nothing has."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def named(error: OSError, target: Path) -> OSError:
    """Return the error with the name that the user gave: that of a failed `write` has none, others name the file aside."""
    return OSError(error.errno, error.strerror, str(target))
