"""Locks on folders that end with the process that holds them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(folder: Path, operation: int) -> Iterator[None]:
    """Hold a lock (`fcntl.LOCK_EX`, also with `LOCK_NB`) on a folder itself, which leaves no file behind.

    Raises:
        BlockingIOError: Another program holds it, and `operation` has `LOCK_NB`.
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
