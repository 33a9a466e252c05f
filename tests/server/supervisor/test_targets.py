"""What the supervisor asks, and which answers it takes for correct ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from defensemble_server.readiness import fixed_images
from defensemble_server.supervisor.records import TargetRecord, readiness_problems
from defensemble_server.supervisor.targets import Target, Targets
from tests.support import memory_faults as faults, tiny
from tests.support.calls import FREE

IMAGE = fixed_images(tiny.SHAPE)
SEEDS = {"alpha@1": 1, "beta@1": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return faults.write_repository(tmp_path / "repository")


def loaded(folder: Path) -> set[tuple[str, int]]:
    return {(path.parent.name, int(path.name)) for path in folder.glob("*/[0-9]*")}


def answer(label: str) -> tiny.Array:
    """What a model answers, by numpy."""
    if label in SEEDS:
        return faults.logits(SEEDS[label], IMAGE).astype(np.float32)
    return np.asarray(sum(tiny.softmax(faults.logits(seed, IMAGE)) for seed in SEEDS.values()) / 2, np.float32)


def known(folder: Path, references: io.BytesIO | None = None) -> tuple[Targets, dict[str, Target]]:
    """The targets of a repository, all of which have answered correctly."""
    targets = Targets(folder, FREE, references or io.BytesIO())
    by_label = {target.label: target for target in targets.current(loaded(folder))}
    for label, target in by_label.items():
        assert targets.problem(target, answer(label)) is None
    return targets, by_label


def test_members_are_asked_before_ensembles(folder: Path) -> None:
    targets, by_label = known(folder)
    assert list(by_label) == ["alpha@1", "beta@1", "ensemble"]
    assert targets.ensembles == ["ensemble"]
    assert [target.label for target in targets.current({("alpha", 1)})] == ["alpha@1"], "only what is loaded"


@pytest.mark.parametrize("broken", ["alpha/config.pbtxt", "ensemble/config.pbtxt"])
def test_an_ensemble_that_cannot_be_served_is_not_ready(folder: Path, broken: str) -> None:
    path = folder / broken
    path.write_text(f"{path.read_text()}\nmax_batch_size: many\n")
    targets = Targets(folder, FREE, io.BytesIO())
    records = {target.label: TargetRecord(target) for target in targets.current(loaded(folder))}
    for record in records.values():
        record.note("correct", 0.1)
    assert targets.ensembles == ["ensemble"]
    assert "ensemble" not in records
    (reason,) = readiness_problems(records, targets.ensembles, targets.problems, None, 3.0)
    assert "ensemble" in reason
    assert str(targets.problems["ensemble"]) in reason


@pytest.mark.parametrize("label", ["alpha@1", "ensemble"])
def test_other_answers_are_wrong(folder: Path, label: str) -> None:
    targets, by_label = known(folder)
    correct = answer(label)
    for values, fault in ((correct + np.float32(0.001), "wrong"), (correct[:, :3], "wrong"), (np.full_like(correct, np.nan), "nan")):
        problem = targets.problem(by_label[label], values)
        assert problem is not None
        assert problem.fault == fault
    assert targets.problem(by_label[label], correct + np.float32(1e-6)) is None, "rounding differs between batches"


def test_the_reference_belongs_to_the_file_not_to_its_version(folder: Path) -> None:
    from defensemble.ensembles import Ensembles

    targets, _ = known(folder)
    Ensembles(folder).refresh(["alpha"])
    fresh = {target.label: target for target in targets.current(loaded(folder))}
    assert fresh["ensemble"].members == (("alpha", 2), ("beta", 1))
    assert targets.problem(fresh["alpha@2"], answer("alpha@1")) is None
    assert targets.problem(fresh["alpha@2"], answer("alpha@1") + 1) is not None
    assert targets.problem(fresh["ensemble"], answer("ensemble")) is None


def test_an_edit_changes_the_correct_answer_of_its_ensemble(folder: Path) -> None:
    from defensemble.ensembles import Ensembles

    targets, _ = known(folder)
    Ensembles(folder).weight("ensemble", {"alpha": 3.0})
    new = {target.label: target for target in targets.current(loaded(folder))}["ensemble"]
    shares = [tiny.softmax(faults.logits(seed, IMAGE)) * share for seed, share in ((1, 0.75), (2, 0.25))]
    assert targets.problem(new, np.asarray(shares[0] + shares[1], np.float32)) is None
    assert targets.problem(new, answer("ensemble")) is not None


def test_a_file_that_was_changed_is_named(folder: Path) -> None:
    targets, by_label = known(folder)
    assert targets.file_problem(by_label["alpha@1"]) is None
    path = folder / "alpha/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert str(path) in str(targets.file_problem(by_label["alpha@1"]))
    path.unlink()
    assert str(path) in str(targets.file_problem(by_label["alpha@1"]))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_file_that_is_replaced_has_no_reference_until_it_is_loaded(folder: Path, restarts: bool) -> None:
    references = io.BytesIO()
    targets, _ = known(folder, references)
    faults.replace_file(folder, 7)
    for current in (targets, Targets(folder, FREE, references)):  # the second one is that of a supervisor that was started again
        changed = {target.label: target for target in current.current(loaded(folder))}
        for label in ("alpha@1", "ensemble"):
            for values in (answer(label), answer(label) + 1):  # of the old file and of the new one, which is loaded at an unknown time
                assert current.problem(changed[label], values) is None
            problem = current.problem(changed[label], np.full_like(answer(label), np.nan))
            assert problem is not None
            assert problem.fault == "nan"
    if restarts:
        targets.forget()
    else:
        targets.current({("beta", 1)})
    (alpha,) = [target for target in targets.current(loaded(folder)) if target.name == "alpha"]
    assert targets.problem(alpha, faults.logits(7, IMAGE).astype(np.float32)) is None
    assert targets.problem(alpha, answer("alpha@1")) is not None


def test_a_supervisor_that_is_started_again_knows_the_correct_answers(folder: Path) -> None:
    references = io.BytesIO()
    known(folder, references)
    references.write(b'{"model": "al')  # it was killed while it wrote
    for _ in range(2):
        targets = Targets(folder, FREE, references)
        for target in targets.current(loaded(folder)):
            assert targets.problem(target, answer(target.label)) is None
            assert targets.problem(target, answer(target.label) + np.float32(0.001)) is not None


def test_an_ensemble_answers_as_before_until_its_configuration_is_loaded(folder: Path) -> None:
    from defensemble.ensembles import Ensembles

    targets, _ = known(folder)
    Ensembles(folder).weight("ensemble", {"alpha": 3.0})
    new = {target.label: target for target in targets.current(loaded(folder))}["ensemble"]
    shares = [tiny.softmax(faults.logits(seed, IMAGE)) * share for seed, share in ((1, 0.75), (2, 0.25))]
    weighted = np.asarray(shares[0] + shares[1], np.float32)
    assert targets.problem(new, answer("ensemble")) is None
    assert targets.problem(new, answer("ensemble") + np.float32(0.001)) is not None
    assert targets.problem(new, weighted) is None
    assert targets.problem(new, answer("ensemble")) is not None, "it was loaded"
