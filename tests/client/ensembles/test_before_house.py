"""A repository with history and interrupted edits that an earlier version wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from defensemble.ensembles import Ensembles
from tests.support import tiny
from tests.support.checkout import ROOT

FILES = ROOT / "tests/support/before_house"
NOW = {"beta@1": 1.0, "alpha@1": 4.0}
FIRST = {"alpha@1": 1.0, "beta@1": 1.0}
HISTORY = [
    ("ensemble", "weight"),
    ("ensemble", "average"),
    ("ensemble", "remove"),
    ("ensemble", "add"),
    ("canary", "create"),
    ("canary", "delete"),
    ("canary", "rollback"),
    ("ensemble", "apply"),
    ("ensemble", "reload"),
    ("ensemble", "rollback"),
]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES / "model_repository", tmp_path / "model_repository"))


def members(ensembles: Ensembles, name: str = "ensemble") -> dict[str, float]:
    (state,) = ensembles.show(name)
    assert state.ensemble is not None
    assert state.problems == ()
    return {f"{member.model}@{member.version}": member.weight for member in state.ensemble.members}


def test_reads_its_ensembles_and_history(repository: Path) -> None:
    before = tiny.content(repository)
    ensembles = Ensembles(repository)
    assert ensembles.names() == ["canary", "ensemble"]
    assert members(ensembles) == NOW
    assert members(ensembles, "canary") == {"alpha@1": 1.0, "beta@1": 2.0}
    assert ensembles.check() == []
    edits = ensembles.history()
    assert [(edit.ensemble, edit.action) for edit in edits] == HISTORY
    assert {edit.who for edit in edits} == {"operator@workstation"}
    assert [edit.message for edit in edits if edit.message is not None] == ["alpha sees better", "it is needed after all", "as agreed"]
    assert edits[6].undoes == (edits[5].id,)
    assert edits[9].undoes == (edits[8].id,)
    assert tiny.content(repository) == before, "reading writes nothing"


def test_edits_it_and_undoes_all_old_edits(repository: Path) -> None:
    ensembles = Ensembles(repository)
    old = (repository / "history.jsonl").read_bytes()
    config = (repository / "ensemble/config.pbtxt").read_bytes()
    assert ensembles.weight("ensemble", {"beta": 2.0}).edit is not None
    assert members(ensembles) == {"beta@1": 2.0, "alpha@1": 4.0}
    ensembles.rollback(name="ensemble")
    assert (repository / "ensemble/config.pbtxt").read_bytes() == config
    # Undo the old edits apply, add, remove, average and weight; the reload is undone already.
    states = []
    for _ in range(5):
        ensembles.rollback(name="ensemble")
        states.append(members(ensembles))
    assert states == [
        {"alpha@1": 3.0, "beta@1": 0.5},
        {"alpha@1": 3.0},
        {"alpha@1": 3.0, "beta@1": 1.0},
        {"alpha@1": 3.0, "beta@1": 1.0},
        FIRST,
    ]
    ensembles.rollback(name="canary")
    assert ensembles.names() == ["ensemble"]
    ensembles.rollback(to=ensembles.history("canary")[0].id)
    assert members(ensembles, "canary") == {"alpha@1": 1.0, "beta@1": 2.0}
    reload = next(edit for edit in ensembles.history() if edit.action == "reload")
    ensembles.rollback(to=reload.id)
    assert [state.max_batch_size for state in ensembles.show("ensemble")] == [4]
    assert (repository / "history.jsonl").read_bytes().startswith(old), "the old history stays, byte for byte"
    assert ensembles.check() == []


@pytest.mark.parametrize(("when", "beta", "count"), [("before_config", 1.0, 10), ("after_config", 5.0, 11)])
def test_recovers_its_interrupted_edit(repository: Path, when: str, beta: float, count: int) -> None:
    shutil.copytree(FILES / when, repository, dirs_exist_ok=True)
    journal = repository / "pending-edit.json"
    journal.write_text(journal.read_text().replace("/srv/model_repository", str(repository)))
    warnings: list[str] = []
    ensembles = Ensembles(repository, on_warning=warnings.append)
    assert members(ensembles) == {**NOW, "beta@1": beta}
    assert [fact for fact in ("weight", "ensemble", "operator@workstation") if fact not in warnings[0]] == []
    assert not journal.exists()
    assert len(ensembles.history()) == count
    assert (repository / "average_7f7caee00316198b").exists() == (when == "after_config")
    ensembles.rollback(name="ensemble")
    assert members(ensembles) == (NOW if when == "after_config" else {"alpha@1": 3.0, "beta@1": 0.5})
