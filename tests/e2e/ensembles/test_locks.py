"""Concurrent edits: the second one waits or fails, and locks of dead processes do not block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from defensemble.ensembles import Ensembles
from defensemble_export.editing import read_history
from defensemble_repository.errors import LockedError
from defensemble_repository.lock import locked
from defensemble_repository.reader import read_ensemble
from tests.support.edits import three_models

_HOLDS = """
import sys
from pathlib import Path
from defensemble_repository.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
_EDITS = """
import sys
from defensemble.ensembles import Ensembles
for weight in sys.argv[2:]:
    Ensembles(sys.argv[1]).weight("ensemble", {"beta": float(weight)})
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    three_models(folder)
    return folder


@contextmanager
def held_by_another(repository: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock until its input ends."""
    command = [sys.executable, "-c", _HOLDS, str(repository)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_an_edit_without_waiting_time_fails(repository: Path) -> None:
    with held_by_another(repository):
        with pytest.raises(LockedError, match="within 0 s"):
            Ensembles(repository, wait_s=0).weight("ensemble", {"alpha": 3.0})
    assert read_history(repository) == []


def test_a_waiting_edit_runs_after_the_first(repository: Path) -> None:
    warnings: list[str] = []

    def on_warning(text: str) -> None:
        warnings.append(text)
        assert other.stdin is not None
        other.stdin.close()  # the other process ends only after the edit waits for it

    with held_by_another(repository) as other:
        Ensembles(repository, wait_s=60, on_warning=on_warning).weight("ensemble", {"alpha": 3.0})
    assert len(warnings) == 1
    assert str(repository.parent) in warnings[0]
    assert [edit.action for edit in read_history(repository)] == ["weight"]


def test_a_killed_process_releases_its_lock(repository: Path) -> None:
    with held_by_another(repository) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait(30)
        Ensembles(repository, wait_s=0).weight("ensemble", {"alpha": 3.0})
    assert [edit.action for edit in read_history(repository)] == ["weight"]


def test_threads_do_not_share_a_lock(repository: Path) -> None:
    with locked(repository):
        with ThreadPoolExecutor(1) as pool, pytest.raises(LockedError, match="within 0 s"):
            pool.submit(Ensembles(repository, wait_s=0).weight, "ensemble", {"alpha": 3.0}).result()
    Ensembles(repository, wait_s=0).weight("ensemble", {"alpha": 3.0})


def test_edits_of_threads_and_processes_run_one_after_another(repository: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _EDITS, str(repository), *numbers]) for numbers in (["2", "3", "4"], ["5", "6", "7"])
    ]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(Ensembles(repository).weight, "ensemble", {"alpha": float(weight)}) for weight in range(2, 8)]:
            assert future.result().changes
    assert [process.wait(120) for process in processes] == [0, 0]
    history = read_history(repository)
    assert len(history) == 12
    # Each edit starts from the state that the previous one left, so none was planned on an outdated state.
    assert [edit.before for edit in history[1:]] == [edit.after for edit in history[:-1]]
    last = history[-1].after
    assert last is not None
    assert read_ensemble(repository, "ensemble") == last.ensemble


def test_child_processes_do_not_inherit_the_lock(repository: Path) -> None:
    with locked(repository):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        Ensembles(repository, wait_s=0).weight("ensemble", {"alpha": 3.0})
        assert child.poll() is None
    finally:
        child.communicate(timeout=30)
