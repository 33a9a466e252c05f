"""Write files so that each is there as a whole or not at all, also after a power cut.

A file gets its content under a temporary name and is flushed to disk; a rename gives it its name; then its folder is flushed, without
which a file system may lose the rename. `defensemble_training` has its own `write_atomic`, because it does not depend on this package.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_FILE_MODE = 0o664
# Flushes at the same time share commits of the file system's journal: on ext4, those of three files and two folders took 8 ms together, and
# 32 ms one by one (median of 30).
_THREADS = 8


def write_atomic(target: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write a file, all of it or nothing, and durably, with the permissions `mode`, or those of any new file.

    Raises:
        OSError: It cannot be written; names `target`, which is as it was, or, where only the folder could not be flushed, holds `content`.
    """
    temporary = temporary_path(target)
    try:
        with os_errors_about(target):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(descriptor, mode)
                fill(file, content)
        rename_durably([(temporary, target)])
    finally:
        temporary.unlink(missing_ok=True)


def fill(file: BinaryIO, content: bytes) -> None:
    """Write all of `content` into a file that was just created."""
    file.write(content)


def rename_durably(renames: Sequence[tuple[Path, Path]]) -> None:
    """Give files that are complete their names, in this order, so that each has its content and its name after a power cut.

    Args:
        renames: Pairs of a temporary path and a target in the same folder.

    Raises:
        OSError: One cannot be flushed or renamed; names its target, or, where a folder cannot be flushed, the last one.
    """
    for temporary, target in renames:
        with os_errors_about(target):
            sync([temporary])
    changed = ChangedFolders()
    for temporary, target in renames:
        with os_errors_about(target):
            os.replace(temporary, target)
            changed.add(target.parent)
    with os_errors_about(target):
        changed.sync()


def sync(paths: Collection[Path]) -> None:
    """Flush files and folders to disk.

    Raises:
        OSError: One cannot be flushed; names it.
    """
    if len(paths) < 2:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
        list(pool.map(_sync, paths))


class ChangedFolders:
    """Folders whose entries change, each of which is flushed once for several changes; an OSError names the folder."""

    def __init__(self) -> None:
        self._pending: dict[Path, None] = {}
        self._all: dict[Path, None] = {}

    def add(self, *folders: Path) -> None:
        """Note a change of these folders' entries."""
        self._pending |= dict.fromkeys(folders)
        self._all |= dict.fromkeys(folders)

    def sync(self) -> None:
        """Flush the folders that were added since the last call."""
        sync(self._pending)
        self._pending.clear()

    def sync_all(self) -> None:
        """Flush every folder that was added: for when their changes were undone."""
        sync(self._all)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # a folder that this user may write and not read
        os.sync()
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        os.sync()  # a file system that flushes no folders
    finally:
        os.close(descriptor)


def shared_mode(target: Path) -> int:
    """The permissions that make a file as readable as what it replaces, or as its folder, whoever writes it with whatever umask."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    return stat.S_IMODE(target.parent.stat().st_mode) & _FILE_MODE | stat.S_IRUSR | stat.S_IWUSR


def remove_temporaries(target: Path) -> list[Path]:
    """Remove and return the temporary files that killed writers of a file have left; nobody may be writing it now."""
    name = temporary_path(target).name.rpartition(".")[0]
    stale = [left for left in sorted(target.parent.glob(f"{name}.*")) if left.name.rpartition(".")[2].isdecimal()]
    for left in stale:
        left.unlink(missing_ok=True)
    return stale


def temporary_path(target: Path) -> Path:
    """Where a file is written before it gets its name."""
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def os_errors_about(target: Path) -> Iterator[None]:
    """Give an error of the operating system the name that the user gave, in place of the temporary file's.

    Where this user lacks the right to write in the target's folder, the error names the folder.
    """
    try:
        yield
    except PermissionError as error:
        if can_write(target.parent):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise folder_write_error(error, target.parent) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def can_write(folder: Path) -> bool:
    """Return whether this user may create and rename files in a folder, as far as permissions and mount options say."""
    return has_access(folder, os.W_OK | os.X_OK)


def has_access(path: Path, mode: int) -> bool:
    """Return whether this process has the rights `mode` (of `os.access`) as its effective user."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def folder_write_error(error: OSError, folder: Path) -> OSError:
    """Return the error for a folder in which no file can be created, named after the folder."""
    missing = " (write permission on this folder is needed)" if isinstance(error, PermissionError) else ""
    return OSError(error.errno, f"{error.strerror}{missing}", str(folder))
