"""`kill -9` of the editor at every step: the repository has the old or the new state, and the next command recovers the edit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.facts import assert_facts
from tests.support.walking import (
    EditProcess,
    FreshStarts,
    answers_match,
    disk_state,
    history,
    leftovers,
    models_of,
    run_completely,
)

# One step of each kind in an edit of weights: half of a file, a new folder, loads, the commit, and removals.
KINDS = ["halve", "os.mkdir", "after load_model average_", "load_model ensemble", "infer ensemble", "unload_model average_", "os.remove"]


def walk(scene: Scene, edit_process: EditProcess, place: Path, *, replicas: int = 1, kinds: Sequence[str] | None = None) -> None:
    """Kill the edit at every step, or at the last step of each kind; check the disk, the servers, and the recovery."""
    edit = scene.edit
    fresh = FreshStarts()
    ends = set()
    with scene.staged(place / "stage", replicas=replicas) as stage:
        complete, new, loaded_new = run_completely(stage, edit_process, edit)
        same = stage.first == new  # a hand edit that changes no files
        steps = list(enumerate(complete.steps, 1))
        # From the end, with the most files written.
        for at, step in reversed(steps if kinds is None else [last(steps, kind) for kind in kinds]):
            result = edit_process.run(stage, edit, at)
            if at > len(result.steps):  # an idle server is polled less often, so this edit had ended before that step
                assert (result.status, result.error) == (0, None), step
                stage.restore()
                continue
            assert (result.status, result.error) == (-9, None), step
            has_journal = any((folder / "pending-edit.json").exists() for folder in stage.folders)
            for folder, client, old, after in zip(stage.folders, stage.clients, stage.first, new, strict=True):
                state = disk_state(folder, edit, old, after)
                if state == "new" or not edit.by_hand:
                    fresh.add(folder, edit.ensemble, edit.before if state == "old" else edit.after)
                assert any(answers_match(client, edit.ensemble, members) for members in (edit.before, edit.after)), step
            stage.ensembles().show()
            warnings = "\n".join(stage.warnings)
            assert ("interrupted edit" in warnings) == has_journal, step
            states = {disk_state(folder, edit, old, after) for folder, old, after in zip(stage.folders, stage.first, new, strict=True)}
            assert len(states) == 1, f"{step}: {warnings}"
            is_recorded = len(history(stage.folders[0])) > len(stage.known[0])
            end = ("new" if "finished" in warnings or is_recorded else "old") if same else states.pop()
            assert not has_journal or ("finished" if end == "new" else "undone") in warnings, step
            for index, folder in enumerate(stage.folders):
                assert models_of(folder) == (stage.first if end == "old" else new)[index], step
                assert answers_match(stage.clients[index], edit.ensemble, edit.before if end == "old" else edit.after), step
                assert stage.ready(index) == (stage.loaded if end == "old" else loaded_new)[index], step
                assert history(folder) == [*stage.known[index], *([edit.verb] if end == "new" else [])], step
                if not has_journal:
                    stage.tidy()  # only an edit removes leftovers without a journal
                assert leftovers(folder) == [], step
            ends.add(end)
            stage.restore()
        assert ends == {"old", "new"}
    assert fresh.check(place) >= (1 if edit.by_hand else 2)


def last(steps: Sequence[tuple[int, str]], begins: str) -> tuple[int, str]:
    """Return the last step with a prefix, and its number."""
    return [(number, step) for number, step in steps if step.startswith(begins)][-1]


def test_killed_at_one_step_of_each_kind(edit_process: EditProcess, tmp_path: Path) -> None:
    walk(REWEIGH, edit_process, tmp_path, kinds=KINDS)


def test_killed_before_and_after_the_commit_with_two_replicas(edit_process: EditProcess, tmp_path: Path) -> None:
    walk(REWEIGH, edit_process, tmp_path, replicas=2, kinds=["load_model average_", "load_model ensemble"])


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_killed_at_every_step(edit_process: EditProcess, tmp_path: Path, replicas: int) -> None:
    walk(REWEIGH, edit_process, tmp_path, replicas=replicas)


def test_the_command_line_reports_and_recovers_an_interrupted_edit(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path / "stage") as stage:
        complete, new, _ = run_completely(stage, edit_process, REWEIGH.edit)
        at = complete.steps.index("load_model ensemble") + 1
        assert edit_process.run(stage, REWEIGH.edit, at).status == -9
        command = [sys.executable, "-m", "defensemble", "ensemble", "show", "--repository", str(stage.folders[0])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert_facts(done.stderr, "interrupted edit | 'ensemble'")
        assert "weight of alpha@1: 1 -> 3" in done.stderr
        assert "finished" in done.stderr
        assert answers_match(stage.clients[0], "ensemble", REWEIGH.edit.after)
        assert models_of(stage.folders[0]) == new[0]
        assert leftovers(stage.folders[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCENES) - {"weight"}))
def test_other_edits_killed_at_every_step(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], edit_process, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add", "create", "delete", "reload of a weight"])
def test_other_edits_killed_at_every_step_with_two_replicas(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], edit_process, tmp_path, replicas=2)
