"""A process that is killed at its first, second, ... rename; all cases are forks of one Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Each fork is killed at its n-th rename and leaves `PLACE/<n>/repository`.
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
    """Run a statement once per rename that it makes, and kill it at that rename.

    Args:
        old: The repository before the statement.
        place: A folder for the copies `<n>/repository`.
        prepare: Statements that run first, such as imports.
        act: The statement, which changes `repository`.

    Returns:
        The exit status of each run; the last run completes.
    """
    script = _KILLED_AT_EACH_RENAME.replace("PREPARE", prepare).replace("ACT", act)
    command = [sys.executable, "-c", script, str(old), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [int(line) for line in done.stdout.split()]
