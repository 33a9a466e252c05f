"""What is left in /dev/shm, where tests of other workers make and remove files at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path("/dev/shm")


@contextmanager
def none_left() -> Iterator[None]:
    """Fail where a file is new at the end that no process has open any more: those of other tests are in use, or gone soon."""
    before = set(os.listdir(FOLDER))
    yield
    deadline = time.monotonic() + 10
    while left := set(os.listdir(FOLDER)) - before - _in_use():
        assert time.monotonic() < deadline, f"left in {FOLDER}: {sorted(left)}"
        time.sleep(0.1)


def _in_use() -> set[str]:
    """The names in /dev/shm that a process has open or mapped."""
    names = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is another user's
            paths = [
                line.rpartition(" ")[2] for line in (process / "maps").read_text(errors="replace").splitlines() if f" {FOLDER}/" in line
            ]
            for descriptor in (process / "fd").iterdir():
                with suppress(FileNotFoundError):  # closed since the folder was listed
                    paths.append(os.readlink(descriptor))
            names |= {Path(path).relative_to(FOLDER).parts[0] for path in paths if path.startswith(f"{FOLDER}/")}
    return names
