"""Putting a plan's files into a repository: all of them, or none."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ._errors import ExportError
from .aside import shared_mode
from .interrupts import interrupts_held
from .locking import held, place_beside

# By how much a file is newer than the one that it replaces, at least.
_TICK_NS = 1_000_000


def write_plan(repository: Path, plan: Mapping[str, bytes]) -> None:
    """Write ``plan`` (path relative to ``repository``, to bytes) so that a failure on the way leaves the repository as it was.

    Everything is first written to a folder beside the repository (Triton takes every folder inside it for a model; inside a model of a
    repository that is a mount), then renamed into place: a new model as one folder, a new version of a model as one folder, changed files
    one by one, in the plan's order. Hold ``locked`` meanwhile. An interrupt (SIGINT) is heeded between two files, and undoes all; one that
    comes after the last changes nothing any more.

    Raises:
        OSError: a disk that is full or read-only, a missing permission (names the file); what had been moved is put back, and no
            folder is left.
        KeyboardInterrupt: likewise.
    """
    with interrupts_held() as interrupts, ExitStack() as unmake:
        for folder in _missing_folders(repository):
            folder.mkdir()
            unmake.callback(_remove_if_empty, folder)
        place = repository.resolve()
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(place), dir=_staging_place(place)))
        try:
            with held(staging, fcntl.LOCK_EX), ExitStack() as undo:
                for path, content in plan.items():
                    interrupts.deliver()
                    target = staging / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        target.write_bytes(content)
                    except OSError as error:  # that of a failed `write` has no name
                        raise OSError(error.errno, error.strerror, str(repository / path)) from error
                for unit in _units(repository, plan):
                    interrupts.deliver()
                    _move(staging / unit, repository / unit, staging, undo)
                interrupts.deliver()
                undo.pop_all()
                interrupts.too_late()
        finally:
            shutil.rmtree(staging)
        unmake.pop_all()


def remove_files(repository: Path, paths: Sequence[str]) -> None:
    """Remove files and folders of ``repository`` (relative paths), and the folders that this leaves empty, all or none.

    Each is renamed to where ``write_plan`` stages, a folder as one, and deleted when the last one was. Hold ``locked`` meanwhile.
    An interrupt is heeded as by ``write_plan``.

    Raises:
        ExportError: the repository is a mount point, and none of its models would be left to stage in.
        OSError: a file that is not there, a missing permission; what had been moved is put back.
        KeyboardInterrupt: likewise.
    """
    if not paths:
        return
    with interrupts_held() as interrupts:
        place = repository.resolve()
        staging = Path(tempfile.mkdtemp(prefix=_staging_prefix(place), dir=_staging_place(place, paths)))
        try:
            with held(staging, fcntl.LOCK_EX), ExitStack() as undo:
                for path in paths:
                    interrupts.deliver()
                    aside = staging / path
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    os.rename(repository / path, aside)
                    undo.callback(os.rename, aside, repository / path)
                interrupts.deliver()
                undo.pop_all()
                interrupts.too_late()
        finally:
            shutil.rmtree(staging)
        for folder in dict.fromkeys((repository / path).parent for path in paths):
            if folder != repository:
                _remove_if_empty(folder)


def remove_stale_staging(repository: Path) -> list[Path]:
    """Remove what killed calls of ``write_plan`` and ``remove_files`` have left, and return it; one that is at work holds its own."""
    place = repository.resolve()
    name = re.compile(re.escape(_staging_prefix(place)) + "[a-z0-9_]{8}")  # the end is `mkdtemp`'s
    removed = []
    beside = sorted(place.parent.iterdir()) if place.parent.exists() else []
    for folder in (*beside, *sorted(place.glob(f"*/{_staging_prefix(place)}*"))):
        if name.fullmatch(folder.name):
            with suppress(OSError), held(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):  # else at work, or somebody else's
                shutil.rmtree(folder, ignore_errors=True)
                removed += [] if folder.exists() else [folder]
    return removed


def check_writable(repository: Path) -> None:
    """Find out before slow work whether ``write_plan`` could write.

    Raises:
        ExportError: the repository is a mount point, and holds no model yet, or it lies behind a link that leads nowhere.
        OSError: the folder that holds the repository, or the repository itself, cannot be written.
    """
    for link in (repository, *repository.parents):
        if link.is_symlink() and not link.exists():
            raise ExportError(
                f"{link} is a link to {os.readlink(link)}, which is not there, or leads back to it: mend the link, or name another folder"
            )
    place = _staging_place(repository.resolve())
    if repository.exists() and _mount(repository) != _mount(place):
        raise ExportError(
            f"{repository} is a file system of its own (a mount) without a model: files are written beside a repository, or inside a model "
            f"that is there, and then renamed into place, so name a folder below it, such as {repository / 'models'}"
        )
    for folder in (place, repository) if repository.exists() else (place,):
        # Made and removed at once: in the repository Triton would take it for a model if it looked just then, so a file it is.
        with tempfile.TemporaryFile(dir=folder):
            pass


def _staging_prefix(place: Path) -> str:
    return f".{place.name}.staging-"


def _staging_place(place: Path, leaving: Sequence[str] = ()) -> Path:
    """Where files wait, on the repository's file system: beside it, or in a model where it is a mount (Triton looks at versions alone).

    A model that is ``leaving`` as a whole is none to wait in: no folder can be moved into itself.

    Raises:
        ExportError: all of a mount's models are leaving.
    """
    beside = place_beside(place)
    if place.exists() and _mount(place) != _mount(beside):
        models = [path.parent for path in sorted(place.glob("*/config.pbtxt"))]
        staying = [folder for folder in models if folder.name not in leaving]
        if models and not staying:
            raise ExportError(
                f"{place} is a file system of its own (a mount), and what is removed waits in one of its models, of which none would be "
                "left: remove all but one"
            )
        return next(iter(staying), beside)
    return beside


def _mount(folder: Path) -> tuple[int, str]:
    """The mount that a folder lies on: between two no file is renamed, be they of one file system, as a bound folder and its origin are."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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
    _settle(source, target)
    if target.exists():
        kept = Path(tempfile.mkdtemp(dir=staging)) / "kept"
        os.link(target, kept)
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
