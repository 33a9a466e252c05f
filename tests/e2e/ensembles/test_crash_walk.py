"""`kill -9` of the editor at every step: the repository is the old or the new one, and the next command finishes the edit or undoes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.facts import assert_facts
from tests.support.walking import (
    Cutter,
    FreshStarts,
    answers_as,
    disk_state,
    history,
    leftovers,
    models_of,
    uncut,
)

# Of an edit of weights, a step of each kind: half of a file, what makes a file, loads, the commit, and what is removed.
KINDS = ["halve", "os.mkdir", "after load_model average_", "load_model ensemble", "infer ensemble", "unload_model average_", "os.remove"]


def walk(scene: Scene, cutter: Cutter, place: Path, *, replicas: int = 1, kinds: Sequence[str] | None = None) -> None:
    """Kill the edit at each of its steps, or at the last step of each kind; check the disk, the servers, and what is made of it next."""
    edit = scene.edit
    fresh = FreshStarts()
    ends = set()
    with scene.staged(place / "stage", replicas=replicas) as stage:
        whole, new, loaded_new = uncut(stage, cutter, edit)
        same = stage.first == new  # of a hand edit that is taken up as it lies there
        steps = list(enumerate(whole.steps, 1))
        for at, step in reversed(steps if kinds is None else [last(steps, kind) for kind in kinds]):  # from the end, where most is in place
            cut = cutter.cut(stage, edit, at)
            assert (cut.status, cut.error) == (-9, None), step
            noted = any((folder / "pending-edit.json").exists() for folder in stage.folders)
            for folder, client, old, after in zip(stage.folders, stage.clients, stage.first, new, strict=True):
                state = disk_state(folder, edit, old, after)
                if state == "new" or not edit.by_hand:
                    fresh.add(folder, edit.ensemble, edit.before if state == "old" else edit.after)
                assert any(answers_as(client, edit.ensemble, members) for members in (edit.before, edit.after)), step
            stage.ensembles().show()
            told = "\n".join(stage.warned)
            assert ("interrupted edit" in told) == noted, step
            states = {disk_state(folder, edit, old, after) for folder, old, after in zip(stage.folders, stage.first, new, strict=True)}
            assert len(states) == 1, f"{step}: {told}"
            end = ("new" if "finished" in told or len(history(stage.folders[0])) > len(stage.known[0]) else "old") if same else states.pop()
            assert not noted or ("finished" if end == "new" else "undone") in told, step
            for index, folder in enumerate(stage.folders):
                assert models_of(folder) == (stage.first if end == "old" else new)[index], step
                assert answers_as(stage.clients[index], edit.ensemble, edit.before if end == "old" else edit.after), step
                assert stage.ready(index) == (stage.loaded if end == "old" else loaded_new)[index], step
                assert history(folder) == [*stage.known[index], *([edit.verb] if end == "new" else [])], step
                if not noted:
                    stage.tidy()  # only an edit looks for what was never noted
                assert leftovers(folder) == [], step
            ends.add(end)
            stage.restore()
        assert ends == {"old", "new"}
    assert fresh.check(place) >= (1 if edit.by_hand else 2)


def last(steps: Sequence[tuple[int, str]], begins: str) -> tuple[int, str]:
    """The last step that begins so, with its number."""
    return [(number, step) for number, step in steps if step.startswith(begins)][-1]


def test_an_edit_of_weights_is_killed_at_a_step_of_each_kind(cutter: Cutter, tmp_path: Path) -> None:
    walk(REWEIGH, cutter, tmp_path, kinds=KINDS)


def test_an_edit_of_two_replicas_is_killed_before_and_after_its_commit(cutter: Cutter, tmp_path: Path) -> None:
    walk(REWEIGH, cutter, tmp_path, replicas=2, kinds=["load_model average_", "load_model ensemble"])


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_edit_of_weights_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path, replicas: int) -> None:
    walk(REWEIGH, cutter, tmp_path, replicas=replicas)


def test_the_command_line_says_what_it_found_and_finishes_it(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path / "stage") as stage:
        whole, new, _ = uncut(stage, cutter, REWEIGH.edit)
        at = whole.steps.index("load_model ensemble") + 1
        assert cutter.cut(stage, REWEIGH.edit, at).status == -9
        command = [sys.executable, "-m", "defensemble", "ensemble", "show", "--repository", str(stage.folders[0])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert_facts(done.stderr, "interrupted edit | 'ensemble'")
        assert "weight of alpha@1: 1 -> 3" in done.stderr
        assert "finished" in done.stderr
        assert answers_as(stage.clients[0], "ensemble", REWEIGH.edit.after)
        assert models_of(stage.folders[0]) == new[0]
        assert leftovers(stage.folders[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCENES) - {"weight"}))
def test_every_other_edit_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], cutter, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add", "create", "delete", "reload of a weight"])
def test_every_other_edit_of_two_replicas_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], cutter, tmp_path, replicas=2)
