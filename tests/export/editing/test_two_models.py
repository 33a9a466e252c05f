"""Ensembles with two averaging models, the form of earlier versions: read as they are, and written with one model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from defensemble_export import check_ensemble, fuse_repository, planned_files, write_files
from defensemble_export.editing import read_history
from defensemble_export.editing.journal import read_journal
from defensemble_export.editing.plan import EditPlan, plan_creation, plan_ensemble, plan_snapshot, step_models
from defensemble_repository.configs import OUTPUTS
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.names import AVERAGING_NAME
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.two_models import write_interrupted_edit, write_old_repository

ENSEMBLES = {
    "ensemble": Ensemble("ensemble", (Member("alpha", 1, 2.0), Member("beta"), Member("gamma", 1, 0.5))),
    "trimmed": Ensemble("trimmed", (Member("alpha"), Member("gamma", 1, 3.0))),
    "plain": Ensemble("plain", (Member("beta"), Member("gamma")), "logits"),
}
GIVEN = {"ensemble": OUTPUTS, "trimmed": OUTPUTS[:2], "plain": OUTPUTS[:1]}
SEEDS = {"alpha": 1, "beta": 2, "gamma": 3}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_old_repository(tmp_path / "repository")


def read_averaging(repository: Path, name: str) -> list[str]:
    return [model for model, _ in step_models(read_config(repository / name)) if AVERAGING_NAME.fullmatch(model)]


def carry_out(plan: EditPlan) -> None:
    write_files(plan.repository, {**plan.averaging, **plan.files})


def check_new_form(repository: Path, name: str) -> None:
    """One averaging model gives what the ensemble declares, and computes what numpy does."""
    ensemble = read_ensemble(repository, name)
    (model,) = read_averaging(repository, name)
    assert check_ensemble(RepositoryView(repository), name) == []
    step = read_config(repository / name).ensemble_scheduling.step[-1]
    assert dict(step.output_map) == {output: output for output in GIVEN[name]}
    assert [tensor.name for tensor in read_config(repository / model).output] == list(OUTPUTS)
    logits = np.stack([tiny.logits(SEEDS[member.model], tiny.images(4)) for member in ensemble.members])
    shares = np.array(ensemble.weights)
    members = tiny.softmax(logits)
    expected = np.tensordot(shares, members, 1) if ensemble.average == "probabilities" else tiny.softmax(np.tensordot(shares, logits, 1))
    session = onnxruntime.InferenceSession(repository / model / "1/model.onnx")
    inputs = {f"logits_{index}": one.astype(np.float32) for index, one in enumerate(logits)}
    np.testing.assert_allclose(session.run(["probabilities"], inputs)[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_reads_two_models_and_writes_one(repository: Path, name: str) -> None:
    before, config = tiny.content(repository), read_config(repository / name)
    ensemble = read_ensemble(repository, name)
    assert ensemble == ENSEMBLES[name]
    plan = plan_ensemble(repository, ensemble)
    assert plan.converts_two_models
    assert plan.released() == tuple(read_averaging(repository, name))
    carry_out(plan)
    check_new_form(repository, name)
    after = tiny.content(repository)
    assert {path for path in before if after[path] != before[path]} == {f"{name}/config.pbtxt"}, "the old models do not change"
    again = plan_ensemble(repository, ensemble)
    assert not again.converts_two_models
    assert not again.changes_files
    converted = read_config(repository / name)
    for one in (config, converted):
        one.ClearField("ensemble_scheduling")
    assert converted == config, "outputs that were taken out and parameters that were added stay so"


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_edit_writes_one_model(repository: Path, name: str) -> None:
    ensemble = ENSEMBLES[name]
    first, *others = ensemble.members
    changed = dataclasses.replace(ensemble, members=(dataclasses.replace(first, weight=7.0), *others))
    carry_out(plan_ensemble(repository, changed))
    assert read_ensemble(repository, name) == changed
    check_new_form(repository, name)


def test_an_export_writes_one_model(repository: Path) -> None:
    write_files(repository, planned_files(repository, [tiny.member("alpha", 9)], ensemble="trimmed", replace=True))
    assert [member.version for member in read_ensemble(repository, "trimmed").members] == [2, 1]
    assert [len(read_averaging(repository, name)) for name in ("trimmed", "ensemble")] == [1, 2]
    assert check_ensemble(RepositoryView(repository), "trimmed") == []


def test_applies_weights_edited_by_hand(repository: Path) -> None:
    for model in read_averaging(repository, "trimmed"):
        path = repository / model / "config.pbtxt"
        path.write_text(path.read_text().replace("[1.0, 3.0]", "[1.0, 9.0]"))
    ensemble = read_ensemble(repository, "trimmed")
    assert [member.weight for member in ensemble.members] == [1.0, 9.0]
    carry_out(plan_ensemble(repository, ensemble))
    check_new_form(repository, "trimmed")


def test_a_new_ensemble_shares_no_model_with_an_old_one(repository: Path) -> None:
    plan = plan_creation(repository, dataclasses.replace(ENSEMBLES["ensemble"], name="twin"))
    assert not set(plan.new_models) & set(read_averaging(repository, "ensemble"))
    carry_out(plan)
    carry_out(plan_ensemble(repository, ENSEMBLES["ensemble"]))
    assert read_averaging(repository, "ensemble") == read_averaging(repository, "twin") == list(plan.new_models)


@pytest.mark.parametrize("converted", [False, True])
def test_restores_old_states_with_one_model(repository: Path, converted: bool) -> None:
    history = read_history(repository)
    assert [edit.action for edit in history if edit.ensemble == "ensemble"] == ["weight", "add", "reload", "average", "rollback"]
    if converted:
        for name in ENSEMBLES:
            carry_out(plan_ensemble(repository, ENSEMBLES[name]))
    owners = set()
    for state in [state for edit in history for state in (edit.before, edit.after) if state is not None and edit.ensemble == "ensemble"]:
        (repository / "ensemble/labels.txt").write_text("of\nanother\nstate\n")
        carry_out(plan_snapshot(repository, "ensemble", state))
        assert read_ensemble(repository, "ensemble") == state.ensemble
        assert (repository / "ensemble/labels.txt").read_text() == state.labels
        check_new_form(repository, "ensemble")
        parameters = read_config(repository / "ensemble").parameters
        assert ("owner" in parameters) == ('key: "owner"' in state.config)
        owners.add("owner" in parameters)
        assert not plan_snapshot(repository, "ensemble", state).changes_files
    assert owners == {False, True}


@pytest.mark.parametrize(("when", "is_done"), [("before_config", False), ("after_config", True)])
def test_reads_an_interrupted_edit_of_an_earlier_version(tmp_path: Path, when: str, is_done: bool) -> None:
    journal = read_journal(write_interrupted_edit(tmp_path / "repository", when))
    assert journal is not None
    assert journal.is_applied == is_done
    assert [name.partition("_")[0] for name in journal.new_models] == ["average", "uncertainty"]


def test_fuses_them(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused", images=tiny.images(4))
    assert [tensor.name for tensor in read_config(repository / "fused").output] == list(OUTPUTS)
    (repository / read_averaging(repository, "trimmed")[1] / "1/model.onnx").write_bytes(tiny.linear_onnx(1))
    with pytest.raises(ValueError, match=r"uncertainty_[0-9a-f]{16}/1/model.onnx: version 1: this file has SHA-256"):
        fuse_repository(repository, "trimmed", "other", images=tiny.images(4))
