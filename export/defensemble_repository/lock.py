"""Lock a repository so that one program at a time changes it. The lock ends with its process."""

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
    """Hold the lock of a repository while planning and writing a change, so that the planned files match the files they replace.

    This waits without a limit. It locks the parent folder, and the repository itself, which other processes may see under another path
    (such as a mount).

    Raises:
        LockedError: An edit of an ensemble was interrupted and must be finished or undone first.

    Example:
        with locked(repository):
            write_files(repository, files)
    """
    with ExitStack() as stack:
        for folder in _folders_to_lock([repository]):
            stack.enter_context(folder_lock(folder, fcntl.LOCK_EX))
        pending = repository / PENDING_FILE
        if pending.exists():
            raise LockedError(
                f"{pending} exists: an edit of an ensemble was interrupted. Finish or undo it with "
                f"`defensemble ensemble show --repository {repository}`."
            )
        yield


@contextmanager
def locked_within(repositories: Sequence[Path], wait_s: float, on_progress: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the locks of several repositories.

    Args:
        repositories: The folders of the repositories.
        wait_s: The longest time to wait for all locks, in seconds.
        on_progress: Called with one message if a lock is not free.

    Raises:
        LockedError: A lock was not free within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    folders = _folders_to_lock(repositories)
    is_reported = False
    with ExitStack() as stack:
        for folder in folders:
            while True:
                try:
                    stack.enter_context(folder_lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise LockedError(
                            f"another program is changing {folder} or a repository in it, and did not finish within {wait_s:g} s. "
                            "Wait for it, or allow more time with --wait SECONDS."
                        ) from error
                    if not is_reported:
                        on_progress(f"waiting for another program that is changing {folder} or a repository in it")
                        is_reported = True
                time.sleep(_POLL_S)
        yield


def existing_parent(repository: Path) -> Path:
    """Return the nearest existing folder above a repository."""
    folder = repository.resolve().parent
    while not folder.exists():
        folder = folder.parent
    return folder


def _folders_to_lock(repositories: Sequence[Path]) -> list[Path]:
    """Return the folders to lock: the existing repositories, and the folders above all of them.

    The order is fixed, so that two processes that lock the same folders never wait for each other. Repositories in one folder share its
    lock. A parent folder that this user cannot read cannot be locked, so only the lock on its repository applies.
    """
    existing = {repository.resolve() for repository in repositories if repository.is_dir()}
    parents = {existing_parent(repository) for repository in repositories if repository.resolve() not in existing}
    parents |= {repository.parent for repository in existing if has_access(repository.parent, os.R_OK)}
    return sorted(existing | parents)
