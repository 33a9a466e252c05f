"""Run a compiler in a temporary folder so that no build leaves files or processes behind, however it ends."""

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
# The compiler and its children form one process group. A second process in that group reads from a pipe whose other end only we hold; at
# end of file (we closed it or died) it kills the group. A parent-death signal would only reach the driver, and g++ starts cc1plus.
_ENDS_WITH_US = 'exec 3<&0; "$@" 3<&- </dev/null & compiler=$!; { read _ <&3; kill -KILL 0; } >/dev/null 2>&1 & wait "$compiler"'


@contextlib.contextmanager
def building_folder(cache: Path) -> Iterator[Path]:
    """Create a build folder in `cache`, and remove it at the end; first remove the folders of dead builds."""
    cache.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(cache)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
    try:
        # A lock ends with its process, even in a cache that containers or machines share, where process IDs mean nothing. It is taken
        # before the file gets its name, so that no other process finds it unlocked.
        with (folder / "unlocked").open("w") as lock:
            with contextlib.suppress(OSError):  # without locks (some network file systems), nothing is ever removed
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / "unlocked").rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_compiler(command: Sequence[str], *, temporary: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a compiler with its temporary files in `temporary`; kill all its processes on an exception or when this process dies."""
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
