"""`kill -9` during the recovery of an interrupted edit: the next command recovers it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.walking import Edit, EditProcess, Stage, answers_match, disk_state, history, leftovers, models_of, run_completely

SHOW = Edit("show", [], None, None)
# By the outcome of the recovery, the prefix of the step before which the edit is killed.
POINTS = {"undone": "load_model average_", "finished": "load_model ensemble"}


def last(steps: list[str], begins: str) -> int:
    """Return the number of the last step with a prefix."""
    return max(number for number, step in enumerate(steps, 1) if step.startswith(begins))


def walk(scene: Scene, edit_process: EditProcess, place: Path, points: Mapping[str, str], *, replicas: int = 1, every: int = 1) -> None:
    """Kill the edit before `points`, and then its recovery at every `every`-th step."""
    edit = scene.edit
    with scene.staged(place / "stage", replicas=replicas) as stage:
        whole, new, loaded_new = run_completely(stage, edit_process, edit)
        for end, begins in points.items():
            at = last(list(whole.steps), begins)
            assert edit_process.run(stage, edit, at).status == -9
            recovery = edit_process.run(stage, SHOW, 0, fault="count")
            assert (recovery.status, recovery.error) == (0, None)
            assert end in "\n".join(recovery.warnings)
            stage.restore()
            for number, step in list(enumerate(recovery.steps, 1))[::-every]:
                assert edit_process.run(stage, edit, at).status == -9
                assert edit_process.run(stage, SHOW, number).status == -9, step
                for folder, client, old, after in zip(stage.folders, stage.clients, stage.first, new, strict=True):
                    disk_state(folder, edit, old, after)
                    assert any(answers_match(client, edit.ensemble, members) for members in (edit.before, edit.after)), step
                check_recovered(stage, edit, end, new if end == "finished" else stage.first, loaded_new, step)
                stage.restore()


def check_recovered(
    stage: Stage, edit: Edit, end: str, wanted: list[Mapping[str, bytes | None]], loaded_new: list[set[str]], step: str
) -> None:
    """Let the next command recover, and check everything."""
    stage.ensembles().show()
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == wanted[index], step
        assert answers_match(stage.clients[index], edit.ensemble, edit.after if end == "finished" else edit.before), step
        assert stage.ready(index) == (loaded_new if end == "finished" else stage.loaded)[index], step
        assert history(folder) == [*stage.known[index], *([edit.verb] if end == "finished" else [])], step
    stage.tidy()  # removes leftovers without a journal
    assert [leftovers(folder) for folder in stage.folders] == [[] for _ in stage.folders], step


def test_recovery_is_killed_at_some_steps(edit_process: EditProcess, tmp_path: Path) -> None:
    walk(REWEIGH, edit_process, tmp_path, POINTS, every=12)


@pytest.mark.slow
def test_recovery_is_killed_at_every_step(edit_process: EditProcess, tmp_path: Path) -> None:
    walk(REWEIGH, edit_process, tmp_path, POINTS)


@pytest.mark.slow
def test_recovery_of_two_replicas_is_killed_at_every_step(edit_process: EditProcess, tmp_path: Path) -> None:
    switch = f"os.rename {tmp_path / 'stage/1/repository/ensemble'}"  # of the second repository; the first has the new state
    walk(REWEIGH, edit_process, tmp_path, {**POINTS, "finished": "os.rename", "undone": switch}, replicas=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("create", {"undone": "load_model average_", "finished": "load_model canary"}),
        ("delete", {"finished": "unload_model canary"}),
        ("add", POINTS),
        ("reload of a weight", POINTS),
        ("reload of a batch size", POINTS),
    ],
)
def test_recovery_of_other_edits_is_killed_at_every_step(
    edit_process: EditProcess, tmp_path: Path, name: str, points: Mapping[str, str]
) -> None:
    walk(SCENES[name], edit_process, tmp_path, points)
