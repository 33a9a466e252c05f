"""Locks on folders, which the system releases when their process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path, operation: int) -> Iterator[None]:
    """Hold a lock on a folder. No lock file is needed.

    Args:
        folder: The folder.
        operation: `fcntl.LOCK_EX` to wait, or `fcntl.LOCK_EX | fcntl.LOCK_NB` to fail immediately.

    Raises:
        BlockingIOError: Another program holds the lock, and `operation` contains `LOCK_NB`.
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
