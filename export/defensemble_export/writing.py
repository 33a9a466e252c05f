"""Putting a plan's files into a repository: all of them, or none."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ._errors import ExportError


def write_plan(repository: Path, plan: Mapping[str, bytes]) -> None:
    """Write ``plan`` (path relative to ``repository``, to bytes) so that a failure on the way leaves the repository as it was.

    Everything is first written to a folder beside the repository (Triton takes every folder inside it for a model), then renamed into
    place: a new model as one folder, a new version of a model as one folder, changed files one by one, in the plan's order.

    Raises:
        OSError: a disk that is full or read-only, a missing permission (names the file); what had been moved is put back.
    """
    created = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    staging = None
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.staging-", dir=repository.resolve().parent))
        for path, content in plan.items():
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(content)
            except OSError as error:  # that of a failed `write` has no name
                raise OSError(error.errno, error.strerror, str(repository / path)) from error
        with ExitStack() as undo:
            for unit in _units(repository, plan):
                _move(staging / unit, repository / unit, staging, undo)
            undo.pop_all()
    except BaseException:
        if created:
            repository.rmdir()
        raise
    finally:
        if staging is not None:
            shutil.rmtree(staging)


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Let one process at a time plan and write: what was planned on the old state must not be written onto another."""
    place = _place_beside(repository)
    # The folder itself is locked: no file is left, and the lock ends with its process.
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_writable(repository: Path) -> None:
    """Find out before slow work whether ``write_plan`` could write.

    Raises:
        ExportError: the repository is a mount point.
        OSError: the folder that holds the repository, or the repository itself, cannot be written.
    """
    place = _place_beside(repository)
    if repository.exists() and repository.stat().st_dev != place.stat().st_dev:
        raise ExportError(
            f"{repository} is a file system of its own (a mount): files are written beside a repository and then renamed into it, "
            f"so name a folder below it, such as {repository / 'models'}"
        )
    for folder in (place, repository) if repository.exists() else (place,):
        # Made and removed at once: in the repository Triton would take it for a model if it looked just then, so a file it is.
        with tempfile.TemporaryFile(dir=folder):
            pass


def _place_beside(repository: Path) -> Path:
    """The folder that holds a repository, or, before it exists, the nearest one above that does."""
    place = repository.resolve().parent
    while not place.exists():
        place = place.parent
    return place


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
        os.link(target, kept)
        os.replace(source, target)
        undo.callback(os.replace, kept, target)
    else:
        os.rename(source, target)
        undo.callback(os.rename, target, source)
