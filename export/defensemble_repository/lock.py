"""One program at a time plans and writes: the lock of a repository, which ends with its process, and who holds it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import LockedError
from .filesystem.atomic_write import has_access
from .names import PENDING_FILE

_POLL_S = 0.02
_LONGEST_COMMAND = 200


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
            stack.enter_context(held(place, fcntl.LOCK_EX))
        pending = repository / PENDING_FILE
        if pending.exists():
            raise LockedError(
                f"{pending}: an edit of an ensemble was cut short; finish or undo it first: "
                f"`defensemble ensemble show --repository {repository}`"
            )
        yield


@contextmanager
def locked_within(repositories: Sequence[Path], wait_s: float, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold the locks of several repositories; ``say`` is told, once, who holds one that is not free.

    Raises:
        LockedError: one was not free within ``wait_s``; names the process that holds it, where the system tells.
    """
    deadline = time.monotonic() + wait_s
    places = _lock_places(repositories)
    told = False
    with ExitStack() as stack:
        for place in places:
            while True:
                try:
                    stack.enter_context(held(place, fcntl.LOCK_EX | fcntl.LOCK_NB))
                    break
                except BlockingIOError as error:
                    holder = holder_of(place) or "another program (the system does not tell which)"
                    if time.monotonic() >= deadline:
                        raise LockedError(
                            f"repositories in {place} are being changed by {holder}, and were not free within {wait_s:g} s: "
                            "wait for it to end, or give it longer (--wait SECONDS)"
                        ) from error
                    if not told:
                        say(f"waiting for {holder}, which changes a repository in {place}")
                        told = True
                time.sleep(_POLL_S)
        yield


@contextmanager
def held(folder: Path, operation: int) -> Iterator[None]:
    """Hold a lock (``fcntl.LOCK_EX``, also with ``LOCK_NB``) on a folder itself: no file is left, and it ends with its process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def place_beside(repository: Path) -> Path:
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
    beside = {place_beside(repository) for repository in repositories if repository.resolve() not in there}
    return sorted(there | beside | {place.parent for place in there if has_access(place.parent, os.R_OK)})


def holder_of(folder: Path) -> str | None:
    """Which process holds the lock on a folder, as "process 123 (its command line)"; None where Linux does not tell.

    Source: proc(5), /proc/locks.
    """
    number = folder.stat().st_ino
    locks = Path("/proc/locks")
    for line in locks.read_text().splitlines() if locks.exists() else ():
        # 1: FLOCK  ADVISORY  WRITE 4242 fd:01:1234 0 EOF
        fields = line.split()
        if len(fields) == 8 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(number) and int(fields[4]) > 0:
            return f"process {fields[4]}{_command(int(fields[4]))}"
    return None


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended since, or is another user's
        return ""
    text = " ".join(word.decode(errors="replace") for word in words if word)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return f" ({text[:_LONGEST_COMMAND]})" if text else ""
