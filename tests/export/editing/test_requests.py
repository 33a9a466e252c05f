"""Edits as values: their plans in a repository, and their actions in the history."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from defensemble_export import EnsembleError, ExistsError, HistoryError, write_files
from defensemble_export.editing import (
    AddMembers,
    ApplyDeclaration,
    CreateEnsemble,
    DeleteEnsemble,
    EditRequest,
    Reload,
    RemoveMembers,
    Restore,
    SetAverage,
    SetWeights,
    read_history,
)
from defensemble_export.editing.history import ACTIONS
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.reader import read_ensemble
from tests.support import tiny
from tests.support.checkout import ROOT

ALPHA, BETA, GAMMA = Member("alpha"), Member("beta"), Member("gamma")
DECLARED = Ensemble("ensemble", (BETA, GAMMA), "logits")
EDITS: dict[EditRequest, tuple[str, Ensemble | None]] = {
    CreateEnsemble("new", ("gamma", "alpha@1"), average="logits"): ("create", Ensemble("new", (GAMMA, ALPHA), "logits")),
    AddMembers("ensemble", ("gamma",), 0.5): ("add", Ensemble("ensemble", (ALPHA, BETA, Member("gamma", 1, 0.5)))),
    AddMembers("ensemble", ("gamma",), in_place_of="alpha"): ("add", Ensemble("ensemble", (GAMMA, BETA))),
    RemoveMembers("ensemble", ("alpha",)): ("remove", Ensemble("ensemble", (BETA,))),
    SetAverage("ensemble", "logits"): ("average", Ensemble("ensemble", (ALPHA, BETA), "logits")),
    ApplyDeclaration(DECLARED): ("apply", DECLARED),
    ApplyDeclaration(dataclasses.replace(DECLARED, name="new")): ("create", dataclasses.replace(DECLARED, name="new")),
    Reload("ensemble"): ("reload", Ensemble("ensemble", (ALPHA, BETA))),
    DeleteEnsemble("ensemble"): ("delete", None),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tiny.write_repository(tmp_path / "place" / "repository")
    return tiny.write_repository(folder, {"gamma": 3}, ensemble=None)


def check_plan(request: EditRequest, repository: Path, action: str, after: Ensemble | None) -> None:
    before = tiny.content(repository)
    plan = request.plan(repository)
    assert tiny.content(repository) == before, "a plan writes nothing"
    assert (plan.repository, plan.name, plan.after) == (repository, request.name, after)
    assert plan.deletes == (after is None)
    assert request.action in ACTIONS
    assert request.action_in(repository) == action
    assert request.undone_edits == ()
    if after is not None:
        write_files(repository, {**plan.averaging, **plan.files})
        assert read_ensemble(repository, request.name) == after


@pytest.mark.parametrize("request_", EDITS, ids=str)
def test_plans_every_request(request_: EditRequest, repository: Path) -> None:
    check_plan(request_, repository, *EDITS[request_])


def test_weights_are_given_by_name(repository: Path) -> None:
    first = Member("alpha", 1, 3.0)
    check_plan(SetWeights("ensemble", {"alpha@1": 3.0}), repository, "weight", Ensemble("ensemble", (first, BETA)))
    created = CreateEnsemble("new", ("alpha", "beta"), {"alpha": 3.0})
    check_plan(created, repository, "create", Ensemble("new", (first, BETA)))
    with pytest.raises(EnsembleError, match="gamma"):
        CreateEnsemble("new", ("alpha", "beta"), {"gamma": 3.0})


def test_only_reload_reloads_and_only_apply_may_differ() -> None:
    assert {type(request) for request in EDITS if request.reloads} == {Reload}
    assert {type(request) for request in EDITS if request.may_differ} == {ApplyDeclaration}


@pytest.mark.parametrize(
    ("request_", "error", "fact"),
    [
        (CreateEnsemble("ensemble", ("alpha",)), ExistsError, "ensemble"),
        (AddMembers("ensemble", ("alpha",)), EnsembleError, "alpha@1"),
        (AddMembers("other", ("alpha",)), EnsembleError, "other"),
        (RemoveMembers("ensemble", ("gamma",)), EnsembleError, "gamma"),
        (SetAverage("ensemble", "median"), EnsembleError, "median"),
        (Reload("alpha"), EnsembleError, "alpha"),
        (DeleteEnsemble("../ensemble"), EnsembleError, r"\.\./ensemble"),
        (DeleteEnsemble("alpha"), EnsembleError, "alpha"),
        (Restore("ensemble", undone=("0123456789ab",)), HistoryError, "0123456789ab"),
    ],
    ids=str,
)
def test_refuses_impossible_requests(repository: Path, request_: EditRequest, error: type[Exception], fact: str) -> None:
    with pytest.raises(error, match=fact):
        request_.plan(repository)


def test_restores_states_from_the_history(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "tests/support/before_house/model_repository", folder)
    edits = [edit for edit in read_history(folder) if edit.ensemble == "ensemble"]
    weight, average, remove, add, apply, reload, rollback = edits
    back = Restore("ensemble", undone=(apply.id, add.id))
    assert (back.action, back.undone_edits) == ("rollback", (apply.id, add.id))
    assert (plan := back.plan(folder)).after == Ensemble("ensemble", (Member("alpha", 1, 3.0),), "logits")
    assert add.before is not None
    assert plan.outcome().content("ensemble/config.pbtxt") == add.before.files["ensemble/config.pbtxt"]
    again = Restore("ensemble", to=reload.id, redoes=True)
    assert (again.action, again.undone_edits) == ("apply", ())
    assert again.plan(folder).outcome().config("ensemble").max_batch_size == 4
    assert not Restore("ensemble", to=apply.id).plan(folder).changes_files, "it has the result of the last edit already"
    assert not Restore("ensemble", to=rollback.id).plan(folder).changes_files
    for other in (
        Restore("ensemble", undone=(add.id,)),
        Restore("ensemble", undone=(add.id, apply.id)),
        Restore("ensemble", undone=(reload.id,)),
        Restore("ensemble", to=weight.id),
        Restore("canary", undone=(apply.id,)),
        Restore("canary", to=average.id, redoes=True),
    ):
        with pytest.raises(HistoryError, match=other.to or other.undone[0]):
            other.plan(folder)
    for undone, to in (((), None), ((remove.id,), add.id)):
        with pytest.raises(ValueError, match="either"):
            Restore("ensemble", undone, to)
