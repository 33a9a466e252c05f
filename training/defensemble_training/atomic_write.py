"""Write files so that each is there as a whole or not at all, also after a power cut.

`defensemble_repository.filesystem.atomic_write` does the same; training has its own, because it depends on none of the packages that serve.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def write_atomic(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it: at every moment the old file is there, or the whole new one.

    Raises:
        OSError: It cannot be written; names the target, and nothing is left.
    """
    temporary = temporary_path(target)
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
            sync(temporary)
            temporary.replace(target)
            sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise with_filename(error, target) from error


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # a folder that this user may write and not read
        os.sync()
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.sync()  # a file system that flushes no folders
    finally:
        os.close(descriptor)


def temporary_path(target: Path) -> Path:
    """Return a name in a file's folder that no file has."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def with_filename(error: OSError, target: Path) -> OSError:
    """Return the error with the name that the user gave: that of a failed `write` has none, others name the temporary file."""
    return OSError(error.errno, error.strerror, str(target))
