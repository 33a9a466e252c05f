"""Run `defensemble ensemble refresh` for models whose answers are wrong, in a process that has imported everything before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..process.guard_process.child import die_with_parent
from ..process.python_command import python_command

# The edit is a command because this package must not import the client. Importing it takes 1.2 s of the 2 s that a repair may take, so
# the process waits for its arguments with everything imported. It ends with its standard input.
_CODE = """\
import json, sys
import defensemble.cli.actions.ensemble, defensemble.cli.commands.ensemble, defensemble_export.editing
from defensemble.__main__ import main
line = sys.stdin.readline()
if line:
    sys.argv = ["defensemble", *json.loads(line)]
    main()
"""
_STOP_WITHIN_S = 5.0
_ERROR_LENGTH = 1000


class RepairProcess:
    """A process that can refresh models once.

    Args:
        repository: The repository.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._errors = os.fdopen(os.memfd_create("errors"), "w+b")
        self._process = subprocess.Popen(
            python_command(_CODE),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self._process.poll() or 0) < 0

    def start(self, members: Sequence[str], reason: str) -> None:
        """Refresh each `MODEL@VERSION`; the servers and their keys are found by the state files."""
        arguments = ["ensemble", "refresh", *members, "--repository", str(self._repository), "--message", reason, "--idle-timeout", "1"]
        with contextlib.suppress(BrokenPipeError):  # it could not import the client, which `error` reports
            self._input.write(json.dumps(arguments).encode() + b"\n")
            self._input.flush()

    def error(self) -> str | None:
        """Return None while the process runs, an empty string once it has succeeded, else why it failed."""
        status = self._process.poll()
        if status is None:
            return None
        if status == 0:
            return ""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
        error = next((line for line in lines if line.startswith("Error: ")), lines[-1])  # lines about what was undone can follow
        return f"`defensemble ensemble refresh` ended with status {status}: {error[:_ERROR_LENGTH]}"

    def stop(self) -> None:
        """End the process; an edit in progress is undone."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._errors.close()

    @property
    def _input(self) -> BinaryIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value]
