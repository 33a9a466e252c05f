"""A power cut at any system call of an edit leaves the old or the new state: what a later step relies on is flushed before it."""

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


class Recorded:
    """An edit of a repository without a server: its system calls, what was there before it, and what it left."""

    def __init__(self, scene: Scene, place: Path) -> None:
        self.edit: Edit = scene.edit
        self.place = place / "disk"
        self.repository = self.place / "repository"
        scene.prepare(self.repository)
        if scene.late is not None:
            scene.late(self.repository)
        self.old, self.known = models_of(self.repository), history(self.repository)
        self.disk = Disk(self.place)
        told = json.dumps([list(self.edit.arguments), dict(self.edit.named)])
        self.calls = self.concerning(traced(_EDITS, [str(self.repository), self.edit.verb, told], place))
        self.new = models_of(self.repository)
        assert self.new != self.old
        assert history(self.repository) == [*self.known, self.edit.verb]

    def concerning(self, calls: Sequence[Call]) -> list[Call]:
        """Those of the calls that are about this disk."""
        return [call for call in calls if any(map(self.disk.holds, call.paths))]


def check_order(recorded: Recorded, call: Call) -> str | None:
    """Check before a call that what it relies on is flushed; returns the step of an edit that it is, if it is one."""
    disk, repository = recorded.disk, str(recorded.repository)
    pending, edits, ensemble = (f"{repository}/{name}" for name in ("pending-edit.json", "history.jsonl", recorded.edit.ensemble))
    renames = call.name.startswith("rename")
    into = renames and call.paths[-1].startswith(f"{repository}/")
    out = renames and not into and call.paths[0].startswith(f"{repository}/")
    changed = call.paths[-1] if into else call.paths[0]
    if into:
        assert disk.has_whole_content(call.paths[0]), f"{changed} gets its name before its content is flushed"
    if (into or out) and changed != pending:
        assert disk.is_flushed(pending), f"{changed} changes before the edit is noted"
    if (into or out) and changed in (ensemble, f"{ensemble}/config.pbtxt"):
        for model in {path.partition("/")[0] for path in {**recorded.old, **recorded.new} if path.startswith("average_")}:
            assert disk.is_flushed(f"{repository}/{model}"), "the ensemble changes before its averaging model is flushed"
        return "ensemble"
    if into and changed == edits:
        assert disk.is_flushed(ensemble), "the history is written before the ensemble is flushed"
        return "history"
    if call.name.startswith("unlink") and changed == pending:
        assert disk.is_flushed(edits), "the note of the edit is removed before the history is flushed"
        return "note removed"
    return "note" if into and changed == pending else None


def walk(scene: Scene, place: Path) -> None:
    """Cut the power before each call of an edit, and check each state that this may leave, once the next command has recovered it."""
    recorded = Recorded(scene, place)
    steps = []
    left: dict[str, Tree] = {}
    for call in recorded.calls:
        if (step := check_order(recorded, call)) is not None:
            steps.append(step)
        recorded.disk.apply(call)
        left |= {repr(tree): tree for tree in recorded.disk.after_power_cut()}
    assert steps == ["note", "ensemble", "history", "note removed"]
    assert recorded.disk.is_flushed(str(recorded.repository)), "the edit ends before all of it is flushed"
    states = [recovered_state(recorded, tree) for tree in left.values()]
    assert states[0] == "old"
    assert states[-1] == "new"


def recovered_state(recorded: Recorded, tree: Tree) -> str:
    """Let the next command recover what is left, and check all of it; returns whether that is the old or the new state."""
    repository = recorded.repository
    put_back(recorded, tree)
    with pytest.raises(ExistsError):  # before an edit is planned, and here refused, what is left of others is recovered and removed
        Ensembles(repository).create("ensemble", ["alpha"])
    state = disk_state(repository, recorded.edit, recorded.old, recorded.new)
    new = state == "new"
    assert history(repository) == [*recorded.known, *([recorded.edit.verb] if new else [])], tree
    assert models_of(repository) == (recorded.new if new else recorded.old), tree
    assert leftovers(repository) == [], tree
    return state


def put_back(recorded: Recorded, tree: Tree) -> None:
    """Put files where the edit was made: its note names the place."""
    shutil.rmtree(recorded.place)
    write_tree(recorded.place, tree)


def test_a_power_cut_at_any_call_of_an_edit_of_weights(tmp_path: Path) -> None:
    walk(REWEIGH, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCENES) - {"weight"}))
def test_a_power_cut_at_any_call_of_any_other_edit(tmp_path: Path, name: str) -> None:
    walk(SCENES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "create", "delete", "reload of a weight"])
@pytest.mark.parametrize("step", ["note", "ensemble", "history", "note removed"])
def test_a_power_cut_at_any_call_of_what_recovers_a_killed_edit(tmp_path: Path, name: str, step: str) -> None:
    recorded = Recorded(SCENES[name], tmp_path)
    for call in recorded.calls:  # killed when this step is done, and before it is flushed
        found = check_order(recorded, call)
        recorded.disk.apply(call)
        if found == step:
            break
    put_back(recorded, recorded.disk.after_kill())
    calls = recorded.concerning(traced(_RECOVERS, [str(recorded.repository)], tmp_path))
    left: dict[str, Tree] = {}
    for call in calls:
        recorded.disk.apply(call)
        left |= {repr(tree): tree for tree in recorded.disk.after_power_cut()}
    states = [recovered_state(recorded, tree) for tree in left.values()]
    assert states[-1] == ("old" if step == "note" else "new")


_EDITS_REPLICAS = """
import sys
from pathlib import Path
from defensemble.ensembles import Ensembles, Replica
Ensembles.over([Replica(Path(folder), ()) for folder in sys.argv[1:]]).weight("ensemble", {"alpha": 3.0})
"""


@pytest.mark.slow
def test_a_power_cut_leaves_both_of_two_replicas_old_or_both_new(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    folders = [place / str(number) / "repository" for number in range(2)]
    for folder in folders:
        REWEIGH.prepare(folder)
    old = models_of(folders[0])
    disk = Disk(place)
    calls = traced(_EDITS_REPLICAS, [str(folder) for folder in folders], tmp_path)
    new = models_of(folders[0])
    left: dict[str, Tree] = {}
    for call in calls:
        disk.apply(call)
        left |= {repr(tree): tree for tree in disk.after_power_cut()}
    seen = set()
    for tree in left.values():
        shutil.rmtree(place)
        write_tree(place, tree)
        with pytest.raises(ExistsError):
            Ensembles.over([Replica(folder, ()) for folder in folders]).create("ensemble", ["alpha"])
        (state,) = {disk_state(folder, REWEIGH.edit, old, new) for folder in folders}
        assert [history(folder) for folder in folders] == [["weight"] if state == "new" else []] * 2, tree
        assert [models_of(folder) for folder in folders] == [new if state == "new" else old] * 2, tree
        seen.add(state)
    assert seen == {"old", "new"}
