"""A process that is killed at its first, second, ... rename: one start of Python serves all cases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Forks before it is killed: `PLACE/<n>/repository` is what was left at the n-th rename.
_KILLED_AT_EACH_RENAME = """
import os, shutil, signal, sys
from pathlib import Path

old, place = Path(sys.argv[1]), Path(sys.argv[2])
PREPARE
for at in range(1, 100):
    repository = place / str(at) / "repository"
    shutil.copytree(old, repository)
    child = os.fork()
    if child == 0:
        calls = 0
        def killing(function):
            def called(*arguments):
                global calls
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments)
            return called
        os.rename, os.replace = killing(os.rename), killing(os.replace)
        ACT
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status >= 0:
        break
"""


def killed_at_each_rename(old: Path, place: Path, *, prepare: str, act: str) -> list[int]:
    """Exit statuses of `act`, a statement on `repository`, a copy of `old` in `place`/<n>/, killed at the n-th rename; the last is whole.

    `prepare` is what comes before the first copy: imports, and what is read once.
    """
    script = _KILLED_AT_EACH_RENAME.replace("PREPARE", prepare).replace("ACT", act)
    command = [sys.executable, "-c", script, str(old), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [int(line) for line in done.stdout.split()]
