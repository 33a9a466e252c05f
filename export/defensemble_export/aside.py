"""A file is written beside its place and then renamed, so that none is ever half written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_aside(target: Path, content: bytes) -> None:
    """Write a file, all of it or nothing.

    Raises:
        OSError: it cannot be written; names ``target``.
    """
    temporary = aside(target)
    try:
        with named(target):
            temporary.write_bytes(content)
            # As readable as what it replaces, or as its folder: others read it too.
            mode = target.stat().st_mode if target.exists() else target.parent.stat().st_mode
            os.chmod(temporary, stat.S_IMODE(mode) & 0o664 | stat.S_IRUSR | stat.S_IWUSR)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def aside(target: Path) -> Path:
    """Where a file is written before it gets its name."""
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def named(target: Path) -> Iterator[None]:
    """Let what the operating system refuses bear the name that the user gave, not that of the file aside."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
