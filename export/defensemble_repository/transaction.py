"""Write files into a repository, or remove them, in one transaction: all or none."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import RepositoryError
from .filesystem.atomic_write import (
    ChangedFolders,
    can_write,
    fill,
    folder_write_error,
    make_newer,
    os_errors_about,
    shared_mode,
    sync,
    write_atomic,
)
from .filesystem.locks import folder_lock
from .filesystem.signals import DeferredSigint, defer_sigint
from .lock import existing_parent
from .names import AVERAGING_NAME, CONFIG_FILE, PENDING_FILE


def write_files(repository: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a repository. If a write fails, the repository is restored.

    The files are first written to a staging folder (see `_staging_parent`) and flushed to disk. Then they are renamed into the repository
    in the given order: a new model or a new version as one folder, other files one by one. Before a `config.pbtxt` is renamed, everything
    renamed so far is flushed, and so is an edit's journal before anything else; on return, everything is. The caller must hold `locked`. An
    interrupt (SIGINT) between two files undoes the transaction; after the last file it has no effect.

    Args:
        repository: The folder of the repository. It is created if it does not exist.
        files: The content of each file, by its path relative to the repository.

    Raises:
        OSError: The disk is full or read-only, or a permission is missing. The error names the file.
        KeyboardInterrupt: SIGINT interrupted the transaction.

    Example:
        with locked(repository):
            write_files(repository, planned_files(repository, members))
    """
    changed = ChangedFolders()
    with defer_sigint() as interrupts, ExitStack() as unmake:
        for folder in _missing_folders(repository):
            folder.mkdir()
            unmake.callback(_remove_if_empty, folder)
            changed.add(folder.parent)
        with _staged(repository, changed, interrupts, changing=files) as (staging, undo):
            for path, content in files.items():
                interrupts.deliver()
                target = staging / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with open(target, "wb") as file:
                        fill(file, content)
                except OSError as error:  # The error of a failed `write` has no file name.
                    raise OSError(error.errno, error.strerror, str(repository / path)) from error
            units = _rename_units(repository, files)
            for unit in units:
                _set_mode_and_mtime(staging / unit, repository / unit)
            interrupts.deliver()
            try:
                sync([path for unit in units for path in (staging / unit, *(staging / unit).rglob("*"))])
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(repository / Path(error.filename).relative_to(staging))) from error
            for unit in units:
                interrupts.deliver()
                if any(Path(path).name == CONFIG_FILE for path in files if path == unit or path.startswith(f"{unit}/")):
                    changed.sync()
                with os_errors_about(repository / unit):
                    _move(staging / unit, repository / unit, undo)
                changed.add((repository / unit).parent)
                if unit == PENDING_FILE:
                    changed.sync()
        unmake.pop_all()


def remove_files(repository: Path, paths: Sequence[str]) -> None:
    """Remove files and folders of a repository, and the folders that become empty: all or none.

    They are renamed into the staging folder and deleted when the renames are flushed to disk. The caller must hold `locked`. An interrupt
    has the same effect as during `write_files`.

    Args:
        repository: The folder of the repository.
        paths: Paths relative to it.

    Raises:
        OSError: A file does not exist, or a permission is missing. Everything is moved back.
        KeyboardInterrupt: SIGINT interrupted the transaction. Everything is moved back.
    """
    if not paths:
        return
    changed = ChangedFolders()
    with defer_sigint() as interrupts:
        with _staged(repository, changed, interrupts, changing=paths, leaving=paths) as (staging, undo):
            for path in paths:
                interrupts.deliver()
                moved = staging / path
                moved.parent.mkdir(parents=True, exist_ok=True)
                with os_errors_about(repository / path):
                    os.rename(repository / path, moved)
                undo.callback(os.rename, moved, repository / path)
                changed.add((repository / path).parent)
                _check_deletable(moved, repository / path)
        # Not flushed: an empty folder that reappears after a power failure is harmless.
        for folder in dict.fromkeys((repository / path).parent for path in paths):
            if folder != repository:
                _remove_if_empty(folder)


def remove_stale_staging(repository: Path) -> list[Path]:
    """Remove the staging folders that killed calls of `write_files` and `remove_files` left, and return their paths.

    Running calls hold a lock on theirs.

    Raises:
        OSError: A folder of the repository cannot be flushed. The staging folder is kept.
    """
    root = repository.resolve()
    prefix = _staging_prefix(root)
    name = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")  # `mkdtemp` chooses the last part.
    removed = []
    # `glob` finds nothing in a folder that this user cannot read.
    pattern = glob.escape(prefix) + "*"
    for folder in sorted([*root.parent.glob(pattern), *root.glob(pattern), *root.glob(f"*/{pattern}")]):
        if name.fullmatch(folder.name):
            with ExitStack() as stack:
                try:
                    stack.enter_context(folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except OSError:  # It is in use, or belongs to another user.
                    continue
                # A folder that a killed call moved out must not reappear without its files after a power failure.
                sync([path for path in (root, *root.rglob("*")) if path.is_dir() and folder not in (path, *path.parents)])
                shutil.rmtree(folder, ignore_errors=True)
                removed += [] if folder.exists() else [folder]
    return removed


def check_writable(repository: Path) -> None:
    """Check before slow work that `write_files` can write to a repository.

    Raises:
        RepositoryError: The path contains a dangling link.
        OSError: Files cannot be created in a folder. The error names the folder.
    """
    for link in (repository, *repository.parents):
        if link.is_symlink() and not link.exists():
            raise RepositoryError(
                f"{link} is a link to {os.readlink(link)}, which does not exist or leads back to the link. Correct the link, or choose "
                "another folder."
            )
    root = repository.resolve()
    for folder in dict.fromkeys((_staging_parent(root), *([root] if root.exists() else []))):
        # A file and not a folder, because Triton could take a folder in the repository for a model.
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise folder_write_error(error, folder) from error


def _staging_prefix(root: Path) -> str:
    return f".{root.name}.staging-"


@contextmanager
def _staged(
    repository: Path, changed: ChangedFolders, interrupts: DeferredSigint, **paths: Collection[str]
) -> Iterator[tuple[Path, ExitStack]]:
    """Create a staging folder, and yield it with the stack of undo steps. On success flush `changed`; otherwise run the undo steps."""
    root = repository.resolve()
    parent = _staging_parent(root, **paths)
    try:
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(root), dir=parent))
    except OSError as error:
        raise folder_write_error(error, parent) from error
    try:
        with folder_lock(staging, fcntl.LOCK_EX), ExitStack() as undo:
            undo.callback(changed.sync_all)
            yield staging, undo
            interrupts.deliver()
            changed.sync()
            undo.pop_all()
            interrupts.mark_committed()
    finally:
        shutil.rmtree(staging)


def _staging_parent(root: Path, *, changing: Collection[str] = (), leaving: Collection[str] = ()) -> Path:
    """Return the folder in which to create the staging folder, on the file system of the repository.

    This is the parent of the repository, unless the repository is a mount or the parent is not writable. Then it is the folder of a model,
    in which Triton only looks for versions. Triton reloads a model whose folder has changed, so a model with paths in `changing` is
    preferred, then an averaging model, which is small. Models in `leaving` are removed and cannot contain the staging folder. In a
    repository without models, it is the repository itself.
    """
    parent = existing_parent(root)
    if not root.exists():
        return parent
    mount = _mount(root)
    if _mount(parent) == mount and can_write(parent):
        return parent
    staying = [path.parent for path in sorted(root.glob("*/config.pbtxt")) if path.parent.name not in leaving]
    if not staying:
        return root
    writable = [folder for folder in staying if can_write(folder) and _mount(folder) == mount]
    changed = {Path(path).parts[0] for path in changing}
    # If no folder is writable, creating the staging folder in one of them gives the error of the system.
    return min(writable or staying, key=lambda folder: (folder.name not in changed, not AVERAGING_NAME.fullmatch(folder.name)))


def _check_deletable(moved: Path, origin: Path) -> None:
    """Raise an error for a folder that contains a folder of another user, whose files would stay in the staging folder."""
    for folder, _, _ in () if moved.is_symlink() else os.walk(moved):
        if not can_write(Path(folder)):
            error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise folder_write_error(error, origin / Path(folder).relative_to(moved))


def _mount(folder: Path) -> tuple[int, str]:
    """Return the device and the mount of a folder.

    No file can be renamed from one mount to another, even on one file system, such as that of a bind mount and its origin.
    """
    descriptor = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)  # O_PATH needs no permission.
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}")  # On Linux, it contains the number of the mount.
        numbers = re.findall(r"^mnt_id:\s*(\d+)$", info.read_text(), re.MULTILINE) if info.exists() else []
        return os.fstat(descriptor).st_dev, "".join(numbers)
    finally:
        os.close(descriptor)


def _missing_folders(repository: Path) -> list[Path]:
    """Return the folder of the repository and its parents that do not exist yet, from the top."""
    return [folder for folder in (*reversed(repository.parents), repository) if not folder.exists()]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # Another program created a file in it.
        folder.rmdir()


def write_journaled(repository: Path, files: Mapping[str, bytes]) -> None:
    """Write a journal, or files that it can restore. A single file is written without a transaction, which takes a third of the time.

    The arguments and errors are those of `write_files`.
    """
    if len(files) == 1 and (target := repository / next(iter(files))).parent.exists():
        write_atomic(target, next(iter(files.values())), mode=shared_mode(target), is_newer=True)
    else:
        write_files(repository, files)


def _rename_units(repository: Path, files: Mapping[str, bytes]) -> list[str]:
    """Return the paths to rename: for each file its topmost folder that does not exist yet, else the file.

    They are in the order of the last file of each.
    """
    units: dict[str, None] = {}
    for path in files:
        unit = Path(path)
        while unit.parent != Path(".") and not (repository / unit.parent).exists():
            unit = unit.parent
        units.pop(unit.as_posix(), None)
        units[unit.as_posix()] = None
    return list(units)


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    if target.exists():
        backup = source.with_name(f".{source.name}.replaced")
        try:
            os.link(target, backup)
        except PermissionError:  # The file has another owner (fs.protected_hardlinks), or the file system has no links.
            shutil.copy2(target, backup)
        os.replace(source, target)
        undo.callback(os.replace, backup, target)
    else:
        os.rename(source, target)
        undo.callback(os.rename, target, source)


def _set_mode_and_mtime(source: Path, target: Path) -> None:
    """Give new files the permissions of those that they replace, or of their folder, and a later modification time.

    The server must be able to read files of every user.
    """
    mode = shared_mode(target)
    make_newer(source, target)
    folder_mode = stat.S_IMODE(target.parent.stat().st_mode) | stat.S_IRWXU
    for path in (source, *source.rglob("*")):
        os.chmod(path, folder_mode if path.is_dir() else mode)
