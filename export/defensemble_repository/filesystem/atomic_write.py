"""Write each file completely or not at all, even if the power fails.

A file is written under a temporary name, flushed to disk and renamed. Then its folder is flushed, because a file system may otherwise
lose the rename. `defensemble_training` has its own `write_atomic`, because it does not depend on this package.
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

from .regular_files import check_replaceable

_FILE_MODE = 0o664
# The least difference between the modification times of a new file and of the one that it replaces.
_TICK_NS = 1_000_000
# Concurrent flushes share commits of the file system's journal. On ext4, three files and two folders took 8 ms concurrently, and 32 ms one
# after the other (median of 30).
_THREADS = 8


def write_atomic(target: Path, content: bytes, *, mode: int | None = None, is_newer: bool = False) -> None:
    """Write a file atomically and durably.

    Args:
        target: The path of the file.
        content: The new content.
        mode: The permissions, or None for those of any new file.
        is_newer: Whether the file gets a later modification time than the one that it replaces (see `make_newer`).

    Raises:
        OSError: The file cannot be written. The error names `target`, which is unchanged, or has the new content if only the flush of the
            folder failed.

    Example:
        write_atomic(Path("result.json"), b"{}")
    """
    temporary = temporary_path(target)
    try:
        with os_errors_about(target):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666 if mode is None else 0o600)
            with os.fdopen(descriptor, "wb") as file:
                if mode is not None:
                    os.fchmod(descriptor, mode)
                fill(file, content)
            if is_newer:
                make_newer(temporary, target)
        rename_durably([(temporary, target)])
    finally:
        temporary.unlink(missing_ok=True)


def fill(file: BinaryIO, content: bytes) -> None:
    """Write `content` into a new file."""
    file.write(content)


def make_newer(source: Path, target: Path) -> None:
    """Give a file a later modification time than the file `target` that it will replace, if there is one.

    Triton reloads a model if a file is newer than before, even if the clock was set back.
    """
    if target.exists():
        replaced_ns = target.stat().st_mtime_ns
        if source.stat().st_mtime_ns <= replaced_ns:
            os.utime(source, ns=(replaced_ns + _TICK_NS,) * 2)


def rename_durably(renames: Sequence[tuple[Path, Path]]) -> None:
    """Rename complete files in the given order, so that their content and their names survive a power failure.

    Args:
        renames: Pairs of a temporary path and a target in the same folder.

    Raises:
        OSError: A file cannot be flushed or renamed. The error names its target, or the last target if a folder cannot be flushed.
    """
    for temporary, target in renames:
        with os_errors_about(target):
            check_replaceable(target)
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
        OSError: A file or folder cannot be flushed. The error names it.
    """
    if len(paths) < 2:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
        list(pool.map(_sync, paths))


class ChangedFolders:
    """Folders whose entries changed. Each is flushed once for several changes.

    The methods raise an OSError that names a folder that cannot be flushed.

    Example:
        changed = ChangedFolders()
        changed.add(path.parent)
        changed.sync()
    """

    def __init__(self) -> None:
        self._pending: dict[Path, None] = {}
        self._all: dict[Path, None] = {}

    def add(self, *folders: Path) -> None:
        """Record that entries of these folders changed."""
        self._pending |= dict.fromkeys(folders)
        self._all |= dict.fromkeys(folders)

    def sync(self) -> None:
        """Flush the folders added since the last call."""
        sync(self._pending)
        self._pending.clear()

    def sync_all(self) -> None:
        """Flush every folder added so far, after their changes were undone."""
        sync(self._all)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:  # This user can write to the folder, but not read it.
        os.sync()
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        os.sync()  # This file system cannot flush folders.
    finally:
        os.close(descriptor)


def shared_mode(target: Path) -> int:
    """Return permissions that make a file as readable as the one that it replaces, or as its folder, independent of the umask."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    return stat.S_IMODE(target.parent.stat().st_mode) & _FILE_MODE | stat.S_IRUSR | stat.S_IWUSR


def remove_temporaries(target: Path) -> list[Path]:
    """Remove the temporary files that killed writers of a file left, and return their paths. No process may be writing the file."""
    name = temporary_path(target).name.rpartition(".")[0]
    stale = [path for path in sorted(target.parent.glob(f"{name}.*")) if path.name.rpartition(".")[2].isdecimal()]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def temporary_path(target: Path) -> Path:
    """Return the path under which a file is written before it is renamed."""
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def os_errors_about(target: Path) -> Iterator[None]:
    """Raise errors of the operating system with the path `target` instead of that of a temporary file.

    If this user cannot write to the folder of `target`, the error names the folder.
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
    """Return whether permissions and mount options allow this user to create and rename files in a folder."""
    return has_access(folder, os.W_OK | os.X_OK)


def has_access(path: Path, mode: int) -> bool:
    """Return whether the effective user of this process has the access `mode` (see `os.access`) to a path."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def folder_write_error(error: OSError, folder: Path) -> OSError:
    """Return the error for a folder in which no file can be created. It names the folder."""
    advice = " (write permission on this folder is needed)" if isinstance(error, PermissionError) else ""
    return OSError(error.errno, f"{error.strerror}{advice}", str(folder))
