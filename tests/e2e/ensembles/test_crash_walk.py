"""`kill -9` of the editor at every step of an edit: the repository is the old or the new one, and the next command finishes or undoes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.ensembles.walking import (
    REWEIGH,
    Cutter,
    Edit,
    FreshStarts,
    Stage,
    answers_as,
    disk_state,
    history,
    leftovers,
    models_of,
    stage_of,
    two_members,
    uncut,
)


@pytest.fixture(scope="module")
def cutter() -> Iterator[Cutter]:
    process = Cutter()
    yield process
    process.close()


def walk(stage: Stage, cutter: Cutter, edit: Edit, place: Path) -> None:
    """Kills the edit at each of its steps, and looks: at the disk, the servers, and what the next command makes of it."""
    whole, new, loaded_new = uncut(stage, cutter, edit)
    fresh = FreshStarts()
    ends = set()
    for at, step in enumerate(whole.steps, 1):
        cut = cutter.cut(stage, edit, at)
        assert (cut.status, cut.error) == (-9, None), step
        noted = any((folder / "pending-edit.json").exists() for folder in stage.folders)
        for folder, client, old, after in zip(stage.folders, stage.clients, stage.first, new, strict=True):
            state = disk_state(folder, edit, old, after)
            fresh.add(folder, edit.ensemble, edit.before if state == "old" else edit.after)
            assert any(answers_as(client, edit.ensemble, votes) for votes in (edit.before, edit.after)), step
        stage.ensembles().show()
        told = "\n".join(stage.warned)
        assert ("cut short" in told) == noted, step
        states = {disk_state(folder, edit, old, after) for folder, old, after in zip(stage.folders, stage.first, new, strict=True)}
        assert len(states) == 1, f"{step}: {told}"
        end = states.pop()
        assert not noted or ("finished" if end == "new" else "undone") in told, step
        for index, folder in enumerate(stage.folders):
            assert models_of(folder) == (stage.first if end == "old" else new)[index], step
            assert answers_as(stage.clients[index], edit.ensemble, edit.before if end == "old" else edit.after), step
            assert stage.ready(index) == (stage.loaded if end == "old" else loaded_new)[index], step
            assert history(folder) == ([edit.verb] if end == "new" else []), step
            if not noted:
                stage.ensembles().average("ensemble", "probabilities", dry_run=True)  # only an edit looks for what was never noted
            assert leftovers(folder) == [], step
        ends.add(end)
        stage.restore()
    assert ends == {"old", "new"}
    assert fresh.check(place) >= 2


def test_an_edit_of_weights_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path) -> None:
    with stage_of(tmp_path / "stage", two_members) as stage:
        walk(stage, cutter, REWEIGH, tmp_path)


def test_an_edit_of_two_replicas_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path) -> None:
    with stage_of(tmp_path / "stage", two_members, replicas=2) as stage:
        walk(stage, cutter, REWEIGH, tmp_path)
