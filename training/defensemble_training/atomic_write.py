"""Write files atomically and durably, so that a crash or power cut never leaves a partial file.

`defensemble_repository.filesystem.atomic_write` does the same. This package has its own copy because it must not depend on the serving
packages.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def write_atomic(target: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it. At any time the target is either the old file or the complete new one.

    Raises:
        OSError: The file cannot be written. The error names the target, and no temporary file remains.
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
    """Flush a file or the entries of a folder to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # a folder that is writable but not readable
        os.sync()
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.sync()  # the file system cannot flush folders
    finally:
        os.close(descriptor)


def temporary_path(target: Path) -> Path:
    """Return an unused name in the target's folder."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")


def with_filename(error: OSError, target: Path) -> OSError:
    """Return the error with the target as its file name: a failed `write` has no file name, other errors name the temporary file."""
    return OSError(error.errno, error.strerror, str(target))
