"""`kill -9` once more, while the next command finishes or undoes an edit that was cut short: the one after that goes on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.walking import Cutter, Edit, Stage, answers_as, disk_state, history, leftovers, models_of, uncut

LOOK = Edit("show", [], None, None)
# By what comes of it, before which of its steps an edit is killed: the last that begins so.
POINTS = {"undone": "load_model average_", "finished": "load_model ensemble"}


def last(steps: list[str], begins: str) -> int:
    """The number of the last step that begins so."""
    return max(number for number, step in enumerate(steps, 1) if step.startswith(begins))


def walk(scene: Scene, cutter: Cutter, place: Path, points: Mapping[str, str], *, replicas: int = 1, every: int = 1) -> None:
    """Kills the edit before `points`, and then what recovers it at each of its steps, or `every` so many."""
    edit = scene.edit
    with scene.staged(place / "stage", replicas=replicas) as stage:
        whole, new, loaded_new = uncut(stage, cutter, edit)
        for end, begins in points.items():
            at = last(list(whole.steps), begins)
            assert cutter.cut(stage, edit, at).status == -9
            recovery = cutter.cut(stage, LOOK, 0, how="count")
            assert (recovery.status, recovery.error) == (0, None)
            assert end in "\n".join(recovery.warned)
            stage.restore()
            for number, step in list(enumerate(recovery.steps, 1))[::-every]:
                assert cutter.cut(stage, edit, at).status == -9
                assert cutter.cut(stage, LOOK, number).status == -9, step
                for folder, client, old, after in zip(stage.folders, stage.clients, stage.first, new, strict=True):
                    disk_state(folder, edit, old, after)
                    assert any(answers_as(client, edit.ensemble, members) for members in (edit.before, edit.after)), step
                check_settled(stage, edit, end, new if end == "finished" else stage.first, loaded_new, step)
                stage.restore()


def check_settled(
    stage: Stage, edit: Edit, end: str, wanted: list[Mapping[str, bytes | None]], loaded_new: list[set[str]], step: str
) -> None:
    """Lets the next command recover, and looks at everything."""
    stage.ensembles().show()
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == wanted[index], step
        assert answers_as(stage.clients[index], edit.ensemble, edit.after if end == "finished" else edit.before), step
        assert stage.ready(index) == (loaded_new if end == "finished" else stage.loaded)[index], step
        assert history(folder) == [*stage.known[index], *([edit.verb] if end == "finished" else [])], step
    stage.tidy()  # takes away what was never noted
    assert [leftovers(folder) for folder in stage.folders] == [[] for _ in stage.folders], step


def test_what_recovers_an_edit_of_weights_is_killed_at_some_of_its_steps(cutter: Cutter, tmp_path: Path) -> None:
    walk(REWEIGH, cutter, tmp_path, POINTS, every=12)


@pytest.mark.slow
def test_what_recovers_an_edit_of_weights_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path) -> None:
    walk(REWEIGH, cutter, tmp_path, POINTS)


@pytest.mark.slow
def test_what_recovers_an_edit_of_two_replicas_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path) -> None:
    walk(REWEIGH, cutter, tmp_path, {**POINTS, "finished": "os.rename", "undone": "os.link"}, replicas=2)


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
def test_what_recovers_another_edit_is_killed_at_each_of_its_steps(
    cutter: Cutter, tmp_path: Path, name: str, points: Mapping[str, str]
) -> None:
    walk(SCENES[name], cutter, tmp_path, points)
