"""A file is written beside its place and then renamed, so that none is ever half written."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OF_A_FILE = 0o664


def write_aside(target: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file, all of it or nothing, with the permissions ``mode``, or those of any new file.

    Raises:
        OSError: it cannot be written; names ``target``.
    """
    temporary = aside(target)
    try:
        with named(target):
            temporary.write_bytes(content)
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def shared_mode(target: Path) -> int:
    """The permissions that make a file as readable as what it replaces, or as its folder, whoever writes it with whatever umask."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    return stat.S_IMODE(target.parent.stat().st_mode) & _OF_A_FILE | stat.S_IRUSR | stat.S_IWUSR


def remove_asides(target: Path) -> list[Path]:
    """Remove what writers of a file that were killed have left beside it, and return it; nobody may be writing it now.

    Raises:
        OSError: one cannot be removed.
    """
    name = aside(target).name.rpartition(".")[0]
    stale = [left for left in sorted(target.parent.glob(f"{name}.*")) if left.name.rpartition(".")[2].isdecimal()]
    for left in stale:
        left.unlink(missing_ok=True)
    return stale


def aside(target: Path) -> Path:
    """Where a file is written before it gets its name."""
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def named(target: Path) -> Iterator[None]:
    """Let what the operating system refuses bear the name that the user gave, not that of the file aside.

    Where this user lacks the right to write in the target's folder, the error names the folder.
    """
    try:
        yield
    except PermissionError as error:
        if may_write(target.parent):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise error_of_folder(error, target.parent) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def may_write(folder: Path) -> bool:
    """Return whether this user may create and rename files in a folder, as far as permissions and mount options say."""
    return has_access(folder, os.W_OK | os.X_OK)


def has_access(path: Path, mode: int) -> bool:
    """Return whether this process has the rights `mode` (of `os.access`) as its effective user."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def error_of_folder(error: OSError, folder: Path) -> OSError:
    """Return the error for a folder in which no file can be created, named after the folder."""
    missing = " (write permission on this folder is needed)" if isinstance(error, PermissionError) else ""
    return OSError(error.errno, f"{error.strerror}{missing}", str(folder))
