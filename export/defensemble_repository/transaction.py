"""Putting a plan's files into a repository: all of them, or none."""

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
from .filesystem.atomic_write import ChangedFolders, can_write, fill, folder_write_error, os_errors_about, shared_mode, sync
from .filesystem.locks import folder_lock
from .filesystem.signals import DeferredSigint, defer_sigint
from .lock import existing_parent
from .names import AVERAGING_NAME, CONFIG_FILE

# By how much a file is newer than the one that it replaces, at least.
_TICK_NS = 1_000_000


def write_files(repository: Path, plan: Mapping[str, bytes]) -> None:
    """Write `plan` (path relative to `repository`, to bytes), so that a failure on the way leaves the repository as it was.

    Everything is first written to a folder beside the repository, or where `_staging_place` says, and flushed to disk. Then it is renamed
    into place: a new model as one folder, a new version of a model as one folder, changed files one by one, in the plan's order. What was
    renamed is on disk before a `config.pbtxt` that comes after it, and all of it when this returns. Hold `locked` meanwhile. An interrupt
    (SIGINT) is heeded between two files, and undoes all; one that comes after the last changes nothing any more.

    Raises:
        OSError: A disk that is full or read-only, a missing permission (names the file); what was moved is put back, and no folder is
            left.
        KeyboardInterrupt: Likewise.
    """
    changed = ChangedFolders()
    with defer_sigint() as interrupts, ExitStack() as unmake:
        for folder in _missing_folders(repository):
            folder.mkdir()
            unmake.callback(_remove_if_empty, folder)
            changed.add(folder.parent)
        with _staged(repository, changed, interrupts, changing=plan) as (staging, undo):
            for path, content in plan.items():
                interrupts.deliver()
                target = staging / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with open(target, "wb") as file:
                        fill(file, content)
                except OSError as error:  # that of a failed `write` has no name
                    raise OSError(error.errno, error.strerror, str(repository / path)) from error
            units = _units(repository, plan)
            for unit in units:
                _settle(staging / unit, repository / unit)
            interrupts.deliver()
            try:
                sync([path for unit in units for path in (staging / unit, *(staging / unit).rglob("*"))])
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(repository / Path(error.filename).relative_to(staging))) from error
            for unit in units:
                interrupts.deliver()
                if any(Path(path).name == CONFIG_FILE for path in plan if path == unit or path.startswith(f"{unit}/")):
                    changed.sync()
                with os_errors_about(repository / unit):
                    _move(staging / unit, repository / unit, staging, undo)
                changed.add((repository / unit).parent)
        unmake.pop_all()


def remove_files(repository: Path, paths: Sequence[str]) -> None:
    """Remove files and folders of `repository` (relative paths), and the folders that this leaves empty, all or none.

    Each is renamed to where `write_files` stages, a folder as one, and deleted when the renames are on disk. Hold `locked` meanwhile. An
    interrupt is heeded as by `write_files`.

    Raises:
        OSError: A file that is not there, a missing permission; what was moved is put back.
        KeyboardInterrupt: Likewise.
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
        # Not flushed: an empty folder that comes back after a power cut does no harm.
        for folder in dict.fromkeys((repository / path).parent for path in paths):
            if folder != repository:
                _remove_if_empty(folder)


def remove_stale_staging(repository: Path) -> list[Path]:
    """Remove and return what killed calls of `write_files` and `remove_files` have left; one that is at work holds its own.

    Raises:
        OSError: A folder of the repository cannot be flushed; what was left stays.
    """
    place = repository.resolve()
    prefix = _staging_prefix(place)
    name = re.compile(re.escape(prefix) + "[a-z0-9_]{8}")  # the end is `mkdtemp`'s
    removed = []
    # A folder that this user may not read yields nothing.
    pattern = glob.escape(prefix) + "*"
    for folder in sorted([*place.parent.glob(pattern), *place.glob(pattern), *place.glob(f"*/{pattern}")]):
        if name.fullmatch(folder.name):
            with ExitStack() as stack:
                try:
                    stack.enter_context(folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
                except OSError:  # at work, or somebody else's
                    continue
                # What a killed call moved out must not come back after a power cut without its files.
                sync([path for path in (place, *place.rglob("*")) if path.is_dir() and folder not in (path, *path.parents)])
                shutil.rmtree(folder, ignore_errors=True)
                removed += [] if folder.exists() else [folder]
    return removed


def check_writable(repository: Path) -> None:
    """Find out before slow work whether `write_files` could write.

    Raises:
        RepositoryError: the repository is behind a link that leads nowhere.
        OSError: a folder in which files must be created cannot be written; names that folder.
    """
    for link in (repository, *repository.parents):
        if link.is_symlink() and not link.exists():
            raise RepositoryError(
                f"{link} is a link to {os.readlink(link)}, which is not there, or leads back to it: mend the link, or name another folder"
            )
    place = repository.resolve()
    for folder in dict.fromkeys((_staging_place(place), *([place] if place.exists() else []))):
        # Made and removed at once: in the repository Triton would take it for a model if it looked just then, so a file it is.
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise folder_write_error(error, folder) from error


def _staging_prefix(place: Path) -> str:
    return f".{place.name}.staging-"


@contextmanager
def _staged(
    repository: Path, changed: ChangedFolders, interrupts: DeferredSigint, **paths: Collection[str]
) -> Iterator[tuple[Path, ExitStack]]:
    """Make a folder in which files wait, at `_staging_place`, and what undoes their renames unless all succeed; then flush `changed`."""
    place = repository.resolve()
    folder = _staging_place(place, **paths)
    try:
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(place), dir=folder))
    except OSError as error:
        raise folder_write_error(error, folder) from error
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


def _staging_place(place: Path, *, changing: Collection[str] = (), leaving: Collection[str] = ()) -> Path:
    """Choose the folder in which files wait, on the repository's file system; `place` is the repository, without links.

    It is the one that holds the repository, unless the repository is a mount, or this user may not write there. Then it is the folder of a
    model, in which Triton looks at versions only. Triton loads a model again when its folder has changed, so one with paths in `changing`
    comes first, then an averaging model, which is small; a model in `leaving` is removed as a whole and cannot hold the files. A
    repository without models serves nobody: files wait in the repository itself.
    """
    beside = existing_parent(place)
    if not place.exists():
        return beside
    mount = _mount(place)
    if _mount(beside) == mount and can_write(beside):
        return beside
    staying = [path.parent for path in sorted(place.glob("*/config.pbtxt")) if path.parent.name not in leaving]
    if not staying:
        return place
    writable = [folder for folder in staying if can_write(folder) and _mount(folder) == mount]
    changed = {Path(path).parts[0] for path in changing}
    # Where none is writable, the system says why for one of them.
    return min(writable or staying, key=lambda folder: (folder.name not in changed, not AVERAGING_NAME.fullmatch(folder.name)))


def _check_deletable(moved: Path, origin: Path) -> None:
    """Refuse to delete a folder that holds a folder of somebody else's: its files would stay, in the staging folder."""
    for folder, _, _ in () if moved.is_symlink() else os.walk(moved):
        if not can_write(Path(folder)):
            has_error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            raise folder_write_error(has_error, origin / Path(folder).relative_to(moved))


def _mount(folder: Path) -> tuple[int, str]:
    """The mount that a folder is on: between two no file is renamed, be they of one file system, as a bound folder and its origin are."""
    descriptor = os.open(folder, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)  # O_PATH needs no permission on the folder
    try:
        known = Path(f"/proc/self/fdinfo/{descriptor}")  # Linux tells the number of the mount
        numbers = re.findall(r"^mnt_id:\s*(\d+)$", known.read_text(), re.MULTILINE) if known.exists() else []
        return os.fstat(descriptor).st_dev, "".join(numbers)
    finally:
        os.close(descriptor)


def _missing_folders(repository: Path) -> list[Path]:
    """The repository's folder and those above it that do not exist yet, from the top."""
    return [folder for folder in (*reversed(repository.parents), repository) if not folder.exists()]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody else put something there
        folder.rmdir()


def _units(repository: Path, plan: Mapping[str, bytes]) -> list[str]:
    """What is renamed as a whole: a path's topmost folder that does not exist yet, else the file; in the order of each one's last file."""
    units: dict[str, None] = {}
    for path in plan:
        unit = Path(path)
        while unit.parent != Path(".") and not (repository / unit.parent).exists():
            unit = unit.parent
        units.pop(unit.as_posix(), None)
        units[unit.as_posix()] = None
    return list(units)


def _move(source: Path, target: Path, staging: Path, undo: ExitStack) -> None:
    if target.exists():
        kept = Path(tempfile.mkdtemp(dir=staging)) / "kept"
        try:
            os.link(target, kept)
        except PermissionError:  # of somebody else's file, under fs.protected_hardlinks; or the file system has no links
            shutil.copy2(target, kept)
        os.replace(source, target)
        undo.callback(os.replace, kept, target)
    else:
        os.rename(source, target)
        undo.callback(os.rename, target, source)


def _settle(source: Path, target: Path) -> None:
    """Let what comes be as readable as what it replaces, or as its folder, and newer: a server reads both, whoever writes.

    Triton loads a model again where a file is newer than it was; a clock that was put back must not hide that.
    """
    mode = shared_mode(target)
    if target.exists():
        known = target.stat().st_mtime_ns
        if source.stat().st_mtime_ns <= known:
            os.utime(source, ns=(known + _TICK_NS,) * 2)
    of_a_folder = stat.S_IMODE(target.parent.stat().st_mode) | stat.S_IRWXU
    for path in (source, *source.rglob("*")):
        os.chmod(path, of_a_folder if path.is_dir() else mode)
