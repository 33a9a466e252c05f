"""A power cut at any system call of an edit leaves the old or the new state: each step is flushed before a later one relies on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from defensemble.ensembles import Ensembles, Replica
from defensemble_export import ExistsError
from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.power_cut import Disk, Tree, write_tree
from tests.support.system_calls import Call, traced
from tests.support.walking import Edit, disk_state, history, leftovers, models_of

_EDITS = """
import json, sys
from defensemble.ensembles import Ensembles, Replica
arguments, named = json.loads(sys.argv[3])
getattr(Ensembles(sys.argv[1]), sys.argv[2])(*arguments, **named)
"""
_RECOVERS = """
import sys
from defensemble.ensembles import Ensembles, Replica
Ensembles(sys.argv[1]).show()
"""


class TracedEdit:
    """An edit of a repository without a server: its system calls, and the states before and after it."""

    def __init__(self, scene: Scene, place: Path) -> None:
        self.edit: Edit = scene.edit
        self.place = place / "disk"
        self.repository = self.place / "repository"
        scene.prepare(self.repository)
        if scene.late is not None:
            scene.late(self.repository)
        self.old, self.known = models_of(self.repository), history(self.repository)
        self.disk = Disk(self.place)
        request = json.dumps([list(self.edit.arguments), dict(self.edit.named)])
        self.calls = self.calls_on_disk(traced(_EDITS, [str(self.repository), self.edit.verb, request], place))
        self.new = models_of(self.repository)
        assert self.new != self.old
        assert history(self.repository) == [*self.known, self.edit.verb]

    def calls_on_disk(self, calls: Sequence[Call]) -> list[Call]:
        """Return the calls that concern this disk."""
        return [call for call in calls if any(map(self.disk.holds, call.paths))]


def check_order(traced_edit: TracedEdit, call: Call) -> str | None:
    """Check before a call that everything it relies on is flushed; return the step of the edit that the call performs, if any."""
    disk, repository = traced_edit.disk, str(traced_edit.repository)
    pending, edits, ensemble = (f"{repository}/{name}" for name in ("pending-edit.json", "history.jsonl", traced_edit.edit.ensemble))
    renames = call.name.startswith("rename")
    into = renames and call.paths[-1].startswith(f"{repository}/")
    out = renames and not into and call.paths[0].startswith(f"{repository}/")
    changed = call.paths[-1] if into else call.paths[0]
    if into:
        assert disk.has_flushed_content(call.paths[0]), f"{changed} is named before its content is flushed"
    if (into or out) and changed != pending:
        assert disk.is_flushed(pending), f"{changed} changes before the journal is flushed"
    if (into or out) and changed in (ensemble, f"{ensemble}/config.pbtxt"):
        for model in {path.partition("/")[0] for path in {**traced_edit.old, **traced_edit.new} if path.startswith("average_")}:
            assert disk.is_flushed(f"{repository}/{model}"), "the ensemble changes before its averaging model is flushed"
        return "ensemble"
    if into and changed == edits:
        assert disk.is_flushed(ensemble), "the history is written before the ensemble is flushed"
        return "history"
    if call.name.startswith("unlink") and changed == pending:
        assert disk.is_flushed(edits), "the journal is removed before the history is flushed"
        return "journal removed"
    return "journal" if into and changed == pending else None


def walk(scene: Scene, place: Path) -> None:
    """Cut the power before each call of an edit, and check every possible state after its recovery."""
    traced_edit = TracedEdit(scene, place)
    steps = []
    trees: dict[str, Tree] = {}
    for call in traced_edit.calls:
        if (step := check_order(traced_edit, call)) is not None:
            steps.append(step)
        traced_edit.disk.apply(call)
        trees |= {repr(tree): tree for tree in traced_edit.disk.after_power_cut()}
    assert steps == ["journal", "ensemble", "history", "journal removed"]
    states = {key: recovered_state(traced_edit, tree) for key, tree in trees.items()}
    first, *_, last = states.values()
    assert (first, last) == ("old", "new")
    assert {states[repr(tree)] for tree in traced_edit.disk.after_power_cut()} == {"new"}, "the edit ends before it is durable"


def recovered_state(traced_edit: TracedEdit, tree: Tree) -> str:
    """Let the next command recover, and check the result; return whether that is the old or the new state."""
    repository = traced_edit.repository
    restore_disk(traced_edit, tree)
    with pytest.raises(ExistsError):  # before an edit is planned, and here refused, interrupted edits are recovered
        Ensembles(repository).create("ensemble", ["alpha"])
    state = disk_state(repository, traced_edit.edit, traced_edit.old, traced_edit.new)
    new = state == "new"
    assert history(repository) == [*traced_edit.known, *([traced_edit.edit.verb] if new else [])], tree
    assert models_of(repository) == (traced_edit.new if new else traced_edit.old), tree
    assert leftovers(repository) == [], tree
    return state


def restore_disk(traced_edit: TracedEdit, tree: Tree) -> None:
    """Write files where the edit was made, because its journal has that path."""
    shutil.rmtree(traced_edit.place)
    write_tree(traced_edit.place, tree)


def test_power_cut_at_any_call(tmp_path: Path) -> None:
    walk(REWEIGH, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCENES) - {"weight"}))
def test_power_cut_at_any_call_of_other_edits(tmp_path: Path, name: str) -> None:
    walk(SCENES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "create", "delete", "reload of a weight"])
@pytest.mark.parametrize("step", ["journal", "ensemble", "history", "journal removed"])
def test_power_cut_at_any_call_of_a_recovery(tmp_path: Path, name: str, step: str) -> None:
    traced_edit = TracedEdit(SCENES[name], tmp_path)
    for call in traced_edit.calls:  # killed after this step, before it is flushed
        step_done = check_order(traced_edit, call)
        traced_edit.disk.apply(call)
        if step_done == step:
            break
    restore_disk(traced_edit, traced_edit.disk.after_kill())
    calls = traced_edit.calls_on_disk(traced(_RECOVERS, [str(traced_edit.repository)], tmp_path))
    trees: dict[str, Tree] = {}
    for call in calls:
        traced_edit.disk.apply(call)
        trees |= {repr(tree): tree for tree in traced_edit.disk.after_power_cut()}
    states = [recovered_state(traced_edit, tree) for tree in trees.values()]
    assert states[-1] == ("old" if step == "journal" else "new")


_EDITS_REPLICAS = """
import sys
from pathlib import Path
from defensemble.ensembles import Ensembles, Replica
Ensembles.over([Replica(Path(folder), ()) for folder in sys.argv[1:]]).weight("ensemble", {"alpha": 3.0})
"""


@pytest.mark.slow
def test_power_cut_leaves_two_replicas_equal(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    folders = [place / str(number) / "repository" for number in range(2)]
    for folder in folders:
        REWEIGH.prepare(folder)
    old = models_of(folders[0])
    disk = Disk(place)
    calls = traced(_EDITS_REPLICAS, [str(folder) for folder in folders], tmp_path)
    new = models_of(folders[0])
    trees: dict[str, Tree] = {}
    for call in calls:
        disk.apply(call)
        trees |= {repr(tree): tree for tree in disk.after_power_cut()}
    seen = set()
    for tree in trees.values():
        shutil.rmtree(place)
        write_tree(place, tree)
        with pytest.raises(ExistsError):
            Ensembles.over([Replica(folder, ()) for folder in folders]).create("ensemble", ["alpha"])
        (state,) = {disk_state(folder, REWEIGH.edit, old, new) for folder in folders}
        assert [history(folder) for folder in folders] == [["weight"] if state == "new" else []] * 2, tree
        assert [models_of(folder) for folder in folders] == [new if state == "new" else old] * 2, tree
        seen.add(state)
    assert seen == {"old", "new"}
