"""Where the backend is compiled, and how the compiler is run, so that nothing of a build is left, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_PREFIX = ".building-"
_LOCK = "lock"
# The compiler and what it starts are one process group, in which a second process reads from a pipe that only we hold: at its end of file,
# when we want it or died, it kills the group. A death signal would reach the driver alone, and g++ starts cc1plus.
_ENDS_WITH_US = 'exec 3<&0; "$@" 3<&- </dev/null & compiler=$!; { read _ <&3; kill -KILL 0; } >/dev/null 2>&1 & wait "$compiler"'


@contextlib.contextmanager
def building_folder(cache: Path) -> Iterator[Path]:
    """A new folder in ``cache`` to build in, which is removed at the end; those that dead processes left are removed first."""
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
    try:
        # A lock ends with its process, also where process numbers mean nothing: a cache that containers or machines share. It is taken
        # before the file has its name, or another process could find it free.
        with (folder / "unlocked").open("w") as lock:
            with contextlib.suppress(OSError):  # some network file systems have no locks: then nobody gets one, and nothing is removed
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / "unlocked").rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_compiler(command: Sequence[str], *, temporary: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a compiler, its temporary files in ``temporary``; on an exception, and when this process dies, all that it started is killed."""
    reader, writer = os.pipe()
    with open(writer, "wb") as ours:
        with open(reader, "rb") as theirs:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _ENDS_WITH_US, "sh", *command],
                stdin=theirs,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "TMPDIR": str(temporary)},
                start_new_session=True,
            )
        with process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            finally:
                ours.close()
                process.wait()
    return subprocess.CompletedProcess(command, process.returncode, output)


def _remove_abandoned(cache: Path) -> None:
    for lock in cache.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
