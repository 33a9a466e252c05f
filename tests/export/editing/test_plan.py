"""The plan of an edit: the files that change and those that do not, computed before anything is written."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import EnsembleError, ExistsError, check_ensemble, planned_files, write_files
from defensemble_export.editing import Edit, Snapshot, append_edit, read_history, read_snapshot
from defensemble_export.editing.history import undoable_edits
from defensemble_export.editing.membership import add_members, remove_members, set_weights
from defensemble_export.editing.plan import (
    EditPlan,
    find_networks,
    plan_creation,
    plan_deletion,
    plan_ensemble,
    plan_snapshot,
    step_models,
    used_models,
)
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError, RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_repository.transaction import remove_files
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import raises

A, B, C, B2 = Member("alpha"), Member("beta"), Member("gamma"), Member("beta", 2)
SEEDS = {"alpha@1": 1, "beta@1": 2, "beta@2": 22, "gamma@1": 3}


def write(folder: Path) -> Path:
    """Write three networks, `beta` at two versions, and an ensemble of `alpha` and `beta@1`."""
    tiny.write_repository(folder)
    write_files(folder, planned_files(folder, [tiny.member("gamma", 3)], ensemble=None, max_batch_size=8))
    tiny.write_second_version(folder, "beta", 22)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write(tmp_path / "place" / "repository")


def write_edit(plan: EditPlan) -> None:
    """Write the files of a plan as an edit does."""
    write_files(plan.repository, plan.averaging)
    if plan.deletes:
        remove_files(plan.repository, [plan.name])
    elif plan.files:
        write_files(plan.repository, plan.files)


def change(folder: Path, after: Ensemble) -> EditPlan:
    plan = plan_ensemble(folder, after)
    write_edit(plan)
    return plan


def edit_config(folder: Path, model: str) -> schema.ModelConfig:
    return config_from_pbtxt((folder / model / "config.pbtxt").read_text(), model)


def write_config(folder: Path, model: str, config: schema.ModelConfig) -> None:
    (folder / model / "config.pbtxt").write_bytes(pbtxt_from_config(config))


def answers(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Run an ensemble on four images as its configuration wires it, with ONNX Runtime instead of a server."""
    tensors = {"images": tiny.images(4)}
    for step in read_config(folder / name).ensemble_scheduling.step:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(folder / step.model_name / str(step.model_version) / "model.onnx", options)
        inputs = {inner: tensors[outer] for inner, outer in step.input_map.items()}
        outputs = dict(step.output_map)
        tensors |= dict(zip(outputs.values(), session.run(list(outputs), inputs), strict=True))
    return {tensor.name: tensors[tensor.name] for tensor in read_config(folder / name).output}


def mean(members: dict[str, float], average: str = "probabilities") -> np.ndarray:
    scores = [tiny.logits(SEEDS[member], tiny.images(4)) for member in members]
    shares = np.array(list(members.values())) / sum(members.values())
    if average == "logits":
        return tiny.softmax(sum(share * values for share, values in zip(shares, scores, strict=True)))
    return np.asarray(sum(share * tiny.softmax(values) for share, values in zip(shares, scores, strict=True)))


def test_an_edit_writes_only_the_averaging_model_and_the_ensemble(repository: Path) -> None:
    before = tiny.content(repository)
    plan = plan_ensemble(repository, Ensemble("ensemble", (A, B2, dataclasses.replace(C, weight=2.0)), "logits"))
    assert tiny.content(repository) == before, "a plan writes nothing"
    assert list(plan.files) == ["ensemble/config.pbtxt"]
    assert [name.partition("_")[0] for name in plan.new_models] == ["average"]
    assert {path.partition("/")[0] for path in plan.averaging} == set(plan.new_models)
    assert plan.before == Ensemble("ensemble", (A, B))
    assert plan.steps() == [("alpha", 1), ("beta", 2), ("gamma", 1), *((model, 1) for model in plan.new_models)]
    assert set(plan.released()) == {step for step, _ in step_models(edit_config(repository, "ensemble"))} - {"alpha", "beta"}
    outcome = plan.outcome()
    write_edit(plan)
    after = tiny.content(repository)
    assert {name for name in before if after.get(name) != before[name]} == {"ensemble/config.pbtxt"}
    for path in (*plan.averaging, *plan.files):
        assert outcome.content(path) == after[path]
    np.testing.assert_allclose(
        answers(repository, "ensemble")["probabilities"], mean({"alpha@1": 1, "beta@2": 1, "gamma@1": 2}, "logits"), atol=1e-6
    )
    assert read_ensemble(repository, "ensemble") == plan.after
    assert check_ensemble(RepositoryView(repository), "ensemble") == []


def test_an_equal_ensemble_changes_nothing(repository: Path) -> None:
    path = repository / "ensemble/config.pbtxt"
    path.write_bytes(b"# our members\n" + path.read_bytes())
    plan = plan_ensemble(repository, Ensemble("ensemble", (A, B)))
    assert not plan.changes_files
    assert (plan.averaging, plan.files, plan.released()) == ({}, {}, ())
    scaled = plan_ensemble(repository, Ensemble("ensemble", (dataclasses.replace(A, weight=3.0), dataclasses.replace(B, weight=3.0))))
    assert not scaled.changes_files, "weights of 3 and 3 equal 1 and 1"


def test_hand_edits_of_an_ensemble_are_kept(repository: Path) -> None:
    config = edit_config(repository, "ensemble")
    config.parameters["owner"].string_value = "us"
    config.max_batch_size = 4
    for tensor in [tensor for tensor in config.output if tensor.name in ("entropy", "mutual_information", "member_probabilities")]:
        config.output.remove(tensor)
        del config.ensemble_scheduling.step[-1].output_map[tensor.name]
    write_config(repository, "ensemble", config)
    plan = change(repository, Ensemble("ensemble", (A, B, C)))
    config = edit_config(repository, "ensemble")
    assert (config.max_batch_size, config.parameters["owner"].string_value) == (4, "us")
    assert [tensor.name for tensor in config.output] == ["probabilities"]
    assert [name.partition("_")[0] for name in plan.new_models] == ["average"]
    assert read_config(repository / plan.new_models[0]).max_batch_size == 4
    np.testing.assert_allclose(answers(repository, "ensemble")["probabilities"], mean({"alpha@1": 1, "beta@1": 1, "gamma@1": 1}), atol=1e-6)


def test_a_new_ensemble_has_the_smallest_batch_and_the_first_labels(repository: Path) -> None:
    tiny.edit_config(repository, "gamma", max_batch_size=5)
    (repository / "alpha/labels.txt").write_bytes(b"circle\nsquare\ntriangle\n")
    plan = plan_creation(repository, Ensemble("canary", (A, C)))
    assert list(plan.files) == ["canary/1/placeholder", "canary/labels.txt", "canary/config.pbtxt"], "the configuration last"
    assert plan.files["canary/labels.txt"] == (repository / "alpha/labels.txt").read_bytes()
    write_edit(plan)
    config = edit_config(repository, "canary")
    assert config.max_batch_size == 5
    assert {read_config(repository / model).max_batch_size for model in plan.new_models} == {5}
    assert check_ensemble(RepositoryView(repository), "canary") == []
    for model in ("alpha", "beta"):
        (repository / model / "labels.txt").unlink()
    assert "second/labels.txt" not in plan_creation(repository, Ensemble("second", (A, B))).files, "no labels are invented"


def test_refuses_an_invalid_batch(repository: Path) -> None:
    for batch in (0, 4097):
        tiny.edit_config(repository, "gamma", max_batch_size=batch)
        with raises(RepositoryError, f"max_batch_size | gamma/config.pbtxt | 1 to 4096 | {batch}"):
            plan_creation(repository, Ensemble("canary", (A, C)))


@pytest.mark.parametrize("damage", ["weights", "graph", "both", "no members", "no graph"])
def test_changed_averaging_models_are_written_again(repository: Path, damage: str) -> None:
    average = next(name for name in RepositoryView(repository).models() if name.startswith("average_"))
    good = tiny.content(repository / average)
    after = read_ensemble(repository, "ensemble")
    config = edit_config(repository, average)
    if damage in ("weights", "both"):
        config.parameters["weights"].string_value = "[1, 9]"
    if damage == "no members":
        del config.parameters["members"]
    write_config(repository, average, config)
    if damage in ("graph", "both"):
        (repository / average / "1/model.onnx").write_bytes(tiny.linear_onnx(1))
    if damage == "no graph":
        (repository / average / "1/model.onnx").unlink()
    plan = change(repository, after)
    assert set(plan.averaging) == {f"{average}/1/model.onnx", f"{average}/config.pbtxt"}
    assert tiny.content(repository / average) == good
    assert not plan_ensemble(repository, after).changes_files


def test_released_models_are_those_that_no_ensemble_uses(repository: Path) -> None:
    change(repository, Ensemble("canary", (A, C)))
    plan = plan_ensemble(repository, Ensemble("ensemble", (B,)))
    assert "alpha" not in plan.released()
    write_edit(plan)
    deletion = plan_deletion(repository, "canary")
    assert {"alpha", "gamma"} <= set(deletion.released())
    assert "beta" not in deletion.released()
    assert (deletion.after, deletion.steps(), deletion.changes_files, deletion.outcome().has("canary")) == (None, [], True, False)
    assert used_models(deletion.outcome()) == {step for step, _ in step_models(edit_config(repository, "ensemble"))}
    write_edit(deletion)
    assert not (repository / "canary").exists()
    (repository / "alpha/config.pbtxt").write_text("nonsense: {")
    assert plan_deletion(repository, "ensemble").released() == (), "the used models are unknown"
    assert find_networks(RepositoryView(repository)) == ["beta", "gamma"]


def test_ensembles_with_equal_members_share_an_averaging_model(repository: Path) -> None:
    plan = plan_creation(repository, Ensemble("twin", (A, B)))
    assert plan.averaging == {}
    write_edit(plan)
    assert plan_deletion(repository, "twin").released() == ()


def test_refuses_impossible_plans(repository: Path) -> None:
    with raises(ExistsError, "ensemble | already"):
        plan_creation(repository, Ensemble("ensemble", (A,)))
    with raises(EnsembleError, "alpha | not an ensemble"):
        plan_deletion(repository, "alpha")
    with pytest.raises(ConfigError, match=r"canary/config\.pbtxt"):
        plan_deletion(repository, "canary")
    with raises(EnsembleError, "delta, epsilon | alpha, beta, gamma"):
        plan_ensemble(repository, Ensemble("ensemble", (A, Member("delta"), Member("epsilon"))))
    with raises(EnsembleError, "alpha | not an ensemble"):
        plan_ensemble(repository, Ensemble("alpha", (B,)))


def test_an_ensemble_wired_by_hand_can_be_replaced_and_deleted(repository: Path) -> None:
    config = edit_config(repository, "ensemble")
    config.ensemble_scheduling.step[0].output_map["logits"] = "by_hand"
    config.ensemble_scheduling.step[2].input_map["logits_0"] = "by_hand"
    write_config(repository, "ensemble", config)
    with pytest.raises(EnsembleError):
        read_ensemble(repository, "ensemble")
    assert plan_deletion(repository, "ensemble").deletes
    plan = plan_ensemble(repository, Ensemble("ensemble", (A, B)))
    assert plan.before is None
    write_edit(plan)
    assert read_ensemble(repository, "ensemble") == Ensemble("ensemble", (A, B))


def test_a_snapshot_is_restored_byte_for_byte(repository: Path) -> None:
    path = repository / "ensemble/config.pbtxt"
    path.write_bytes(b"# by hand \xff\n" + path.read_bytes())
    (repository / "ensemble/labels.txt").write_bytes(b"circle\nsquare\ntriangle")
    first, snapshot = tiny.content(repository), read_snapshot(RepositoryView(repository), "ensemble")
    change(repository, Ensemble("ensemble", (C,), "logits"))
    (repository / "ensemble/labels.txt").write_bytes(b"other\n")
    for model in snapshot.averaging:
        shutil.rmtree(repository / model)
    plan = plan_snapshot(repository, "ensemble", snapshot)
    assert set(plan.new_models) == set(snapshot.averaging)
    write_edit(plan)
    assert {name: content for name, content in tiny.content(repository).items() if name in first} == first
    assert not plan_snapshot(repository, "ensemble", snapshot).changes_files
    write_edit(plan_snapshot(repository, "ensemble", None))
    assert not (repository / "ensemble").exists()
    assert not plan_snapshot(repository, "ensemble", None).changes_files
    write_edit(plan_snapshot(repository, "ensemble", snapshot))
    assert {name: content for name, content in tiny.content(repository).items() if name in first} == first


def test_refuses_a_snapshot_with_a_missing_version(repository: Path) -> None:
    change(repository, Ensemble("ensemble", (A, B2)))
    snapshot = read_snapshot(RepositoryView(repository), "ensemble")
    shutil.rmtree(repository / "beta/2")
    with raises(EnsembleError, "beta@2 | 'ensemble' | export it again"):
        plan_snapshot(repository, "ensemble", snapshot)


_ACTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "weight", "average", "switch", "rollback", "delete"]),
        st.integers(0, 9),
        st.sampled_from([0.25, 1.0, 2.0, 3.5]),
    ),
    max_size=8,
)


@given(acts=_ACTS)
@settings(max_examples=25)
def test_any_edits_can_be_undone_to_the_first_bytes(tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, int, float]]) -> None:
    repository = write(tmp_path_factory.mktemp("any") / "repository")
    kept = dict(tiny.content(repository))
    states: list[Snapshot | None] = [read_snapshot(RepositoryView(repository), "ensemble")]
    for number, (action, pick, weight) in enumerate(acts):
        now = None if states[-1] is None else states[-1].ensemble
        undone: tuple[str, ...] = ()
        if action == "rollback":
            stack = undoable_edits(read_history(repository), "ensemble")
            if not stack:
                continue
            undone = (stack[-1].id,)
            plan = plan_snapshot(repository, "ensemble", stack[-1].before)
        elif action == "delete":
            if now is None:
                continue
            plan = plan_deletion(repository, "ensemble")
        else:
            try:
                plan = plan_ensemble(repository, _changed(now, action, pick, weight))
            except EnsembleError:
                continue
        before = states[-1]
        write_edit(plan)
        after = read_snapshot(RepositoryView(repository), "ensemble") if plan.after is not None else None
        _check_state(repository, after)
        name = action if action not in ("switch",) else "add"
        append_edit(
            repository, Edit(f"{number:012x}", "2026-01-31T12:00:00+00:00", "a@b", "ensemble", name, None, (), undone, before, after)
        )
        states.append(after)
    for edit in reversed(undoable_edits(read_history(repository), "ensemble")):
        write_edit(plan_snapshot(repository, "ensemble", edit.before))
        _check_state(repository, edit.before)
    after_rollbacks = tiny.content(repository)
    assert {name: after_rollbacks.get(name) for name in kept} == kept


def _changed(now: Ensemble | None, action: str, pick: int, weight: float) -> Ensemble:
    if now is None:
        return Ensemble("ensemble", (A, B))
    member = now.members[pick % len(now.members)]
    name = f"{member.model}@{member.version}"
    if action == "add":
        return add_members(now, [dataclasses.replace((A, B, C, B2)[pick % 4], weight=weight)])
    if action == "switch":
        new = dataclasses.replace(member, version=3 - member.version) if member.model == "beta" else C
        return add_members(now, [new], in_place_of=name)
    if action == "remove":
        return remove_members(now, [name])
    if action == "weight":
        return set_weights(now, {name: weight})
    return dataclasses.replace(now, average="logits" if now.average == "probabilities" else "probabilities")


def _check_state(repository: Path, state: Snapshot | None) -> None:
    """Check that the ensemble answers as numpy does, and that its averaging model has the expected name."""
    if state is None:
        assert not (repository / "ensemble").exists()
        return
    ensemble = state.ensemble
    weights = {f"{member.model}@{member.version}": member.weight for member in ensemble.members}
    np.testing.assert_allclose(answers(repository, "ensemble")["probabilities"], mean(weights, ensemble.average), atol=1e-6)
    names = [step for step, _ in step_models(read_config(repository / "ensemble"))][len(ensemble.members) :]
    assert names == [f"average_{ensemble.digest(3, 8)}"]
    assert check_ensemble(RepositoryView(repository), "ensemble") == []
