"""One program at a time plans and writes: the lock of a repository, which ends with its process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import LockedError
from .filesystem.atomic_write import has_access
from .filesystem.locks import folder_lock
from .names import PENDING_FILE

_POLL_S = 0.02


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Let one process at a time plan and write: what was planned on the old state must not be written onto another.

    Waits as long as it takes. The locks are on the folder that holds the repository, and on the repository itself, which others may see
    in another place.

    Raises:
        LockedError: an edit of an ensemble was cut short there, and is to be finished or undone first.
    """
    with ExitStack() as stack:
        for place in _lock_places([repository]):
            stack.enter_context(folder_lock(place, fcntl.LOCK_EX))
        pending = repository / PENDING_FILE
        if pending.exists():
            raise LockedError(
                f"{pending}: an edit of an ensemble was cut short; finish or undo it first: "
                f"`defensemble ensemble show --repository {repository}`"
            )
        yield


@contextmanager
def locked_within(repositories: Sequence[Path], wait_s: float, on_progress: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the locks of several repositories; `on_progress` gets one message if one of them is not free.

    Raises:
        LockedError: One was not free within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    places = _lock_places(repositories)
    waits = False
    with ExitStack() as stack:
        for place in places:
            while True:
                try:
                    stack.enter_context(folder_lock(place, fcntl.LOCK_EX | fcntl.LOCK_NB))
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise LockedError(
                            f"{place}, or a repository in it, is being changed by another program, and was not free within {wait_s:g} s: "
                            "wait for it to end, or give it longer (--wait SECONDS)"
                        ) from error
                    if not waits:
                        on_progress(f"waiting for another program, which changes {place}, or a repository in it")
                        waits = True
                time.sleep(_POLL_S)
        yield


def existing_parent(repository: Path) -> Path:
    """The folder that holds a repository, or, before it exists, the nearest one above that does."""
    place = repository.resolve().parent
    while not place.exists():
        place = place.parent
    return place


def _lock_places(repositories: Sequence[Path]) -> list[Path]:
    """What is locked: the folders that hold repositories, which there are before these, and the repositories that there are.

    A folder that this user may not read cannot be locked; the lock on the repository then has to do. Sorted, so that two that want the same
    ones never wait for each other; repositories of one folder share its lock.
    """
    there = {repository.resolve() for repository in repositories if repository.is_dir()}
    beside = {existing_parent(repository) for repository in repositories if repository.resolve() not in there}
    return sorted(there | beside | {place.parent for place in there if has_access(place.parent, os.R_OK)})
