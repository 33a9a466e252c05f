"""Run compilers in a temporary folder so that no build leaves files or processes behind, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

_PREFIX = ".building-"
_LOCK = "lock"
_AT_ONCE = 2
# A compiler and its children form one process group. A second process in that group reads from a pipe whose other end only we hold; at
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


def run_compilers(commands: Sequence[Sequence[str]], *, temporary: Path, timeout_s: float) -> None:
    """Run compilers, two at a time, until all have succeeded or one has failed; kill the others then, on any exception or when we die.

    Args:
        commands: A command line for each compiler.
        temporary: The folder for their temporary files.
        timeout_s: The time that all of them may take together.

    Raises:
        CalledProcessError: A compiler failed; `output` is what it wrote.
        TimeoutExpired: They took too long.
        OSError: A compiler cannot be started.
    """
    environment = {**os.environ, "TMPDIR": str(temporary)}
    reader, writer = os.pipe()
    with open(reader, "rb") as theirs, ThreadPoolExecutor(_AT_ONCE) as pool:
        with open(writer, "wb"):  # its end is the end of all compilers
            try:
                runs = [pool.submit(_run, command, theirs, environment) for command in commands]
                done, unfinished = wait(runs, timeout_s, FIRST_EXCEPTION)
                failed = next((run for run in runs if run in done and run.exception() is not None), None)
                if failed is not None:
                    failed.result()
                elif unfinished:
                    raise subprocess.TimeoutExpired(commands[runs.index(unfinished.pop())], timeout_s)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _run(command: Sequence[str], theirs: BinaryIO, environment: dict[str, str]) -> None:
    subprocess.run(
        ["/bin/sh", "-c", _ENDS_WITH_US, "sh", *command],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
        check=True,
    )


def _remove_abandoned(cache: Path) -> None:
    for lock in cache.glob(f"{_PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
