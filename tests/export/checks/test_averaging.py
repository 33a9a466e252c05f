"""Checks of averaging models: parameters, graphs, names, and the form with two models of earlier versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble_export import check_ensemble, check_repository
from defensemble_export.entries.ensemble import ensemble_files
from defensemble_repository.configs import Interface
from defensemble_repository.reader import read_ensemble
from defensemble_repository.target import EMBEDDED
from defensemble_repository.view import RepositoryView
from tests.export.checks.test_ensemble import average_of, check, edit, only
from tests.support import tiny
from tests.support.two_models import write_interrupted_edit, write_old_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny.write_repository(tmp_path / "place" / "repository", weight={"beta": 3.0})


PARAMETERS = [
    ("weights", "[1.0, -3.0]", "'beta' | -3.0 | above 0"),
    ("weights", "[1.0, 0]", "`defensemble ensemble apply FILE`"),
    ("weights", "[NaN, 3.0]", "'alpha' | NaN"),
    ("weights", "[1.0, Infinity]", "'beta' | Infinity"),
    ("weights", f"[1.0, 1{'0' * 400}]", "above 0"),
    ("weights", '[1.0, "3"]', "'beta' | \"3\""),
    ("weights", "[1.0, true]", "'beta' | true"),
    ("weights", "[1.0]", "1 weights | 2 members"),
    ("weights", "1.0, 3.0", "JSON list | each member"),
    ("weights", "[" * 99999, "JSON list | each member"),
    ("weights", "[1.0, 1e-9]", "not count"),
    ("weights", "[1.0, 5.0]", "by hand | `defensemble ensemble reload ensemble`"),
    ("average", "logits", "by hand | `defensemble ensemble reload ensemble`"),
    ("average", "median", "average | 'median' | probabilities | logits"),
    ("members", '["beta@1", "alpha@1"]', "by hand | `defensemble ensemble reload ensemble`"),
    ("members", '["alpha", "beta"]', 'JSON list | "NAME@VERSION"'),
    ("members", '["alpha@1", "alpha@1"]', "alpha@1 | twice"),
    ("members", '["alpha@1", "../beta@1"]', "model's name"),
    ("members", "{}", 'JSON list | "NAME@VERSION"'),
]


@pytest.mark.parametrize(("key", "value", "facts"), PARAMETERS)
def test_parameters_of_the_averaging_model(repository: Path, key: str, value: str, facts: str) -> None:
    model = average_of(repository)
    edit(repository, model, lambda config: setattr(config.parameters[key], "string_value", value))
    finding = only(repository, facts, model=model, line="string_value")
    assert finding.file == repository / model / "config.pbtxt"


@pytest.mark.parametrize("prefix", ["average_", "uncertainty_"])
@pytest.mark.parametrize(("key", "value", "facts"), PARAMETERS)
def test_parameters_of_each_of_two_averaging_models(tmp_path: Path, prefix: str, key: str, value: str, facts: str) -> None:
    repository = write_old_repository(tmp_path / "repository")
    model = average_of(repository, "trimmed", prefix)
    edit(repository, model, lambda config: setattr(config.parameters[key], "string_value", value.replace("beta", "gamma")))
    for ours, theirs in (("beta", "gamma"), ("remove ensemble", "remove trimmed"), ("reload ensemble", "reload trimmed")):
        facts = facts.replace(ours, theirs)
    only(repository, facts, name="trimmed", model=model, line="string_value")


@pytest.mark.parametrize("key", ["average", "weights", "members"])
def test_a_missing_parameter_only_stops_edits(repository: Path, key: str) -> None:
    model = average_of(repository)
    edit(repository, model, lambda config: config.parameters.pop(key))
    only(repository, f"lacks the parameter {key}", model=model)
    findings = {(finding.model, finding.is_error) for finding in check_repository(RepositoryView(repository), EMBEDDED)}
    assert {(model, False)} <= findings <= {(model, False), ("ensemble", False)}


def test_equivalent_weights_are_equal(repository: Path) -> None:
    edit(repository, average_of(repository), lambda config: setattr(config.parameters["weights"], "string_value", "[2, 6]"))
    assert check(repository) == []


def test_an_averaging_graph_must_match_its_parameters(repository: Path) -> None:
    from defensemble_export import average_onnx
    from defensemble_repository.ensemble import Ensemble, Member

    model = average_of(repository)
    other = average_onnx(Ensemble("e", (Member("alpha", 1, 9.0), Member("beta"))), 3)
    (repository / model / "1/model.onnx").write_bytes(other)
    only(repository, "has SHA-256", model=model)
    edit(repository, model, lambda config: config.parameters.pop("sha256.1"))
    finding = only(repository, "graph | parameters", model=model)
    assert finding.file == repository / model / "1/model.onnx"


def test_averaging_model_with_other_inputs_or_batch(repository: Path) -> None:
    model = average_of(repository)
    tiny.edit_config(repository, model, max_batch_size=9)
    only(repository, "max_batch_size 9", model=model)
    tiny.edit_config(repository, model, max_batch_size=8)
    edit(repository, model, lambda config: setattr(config.input[1], "name", "logits_2"))
    only(repository, "logits_0 FP32 [3], logits_1 FP32 [3]", model=model, line="input")


def test_two_averaging_models_are_reported(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "repository")
    finding = only(repository, "crash", model="ensemble", line=average_of(repository), is_error=False)
    assert "`defensemble ensemble reload ensemble`" in finding.text
    assert check(repository, "plain") == []
    edit(repository, "ensemble", lambda config: config.ensemble_scheduling.step[-1].input_map.pop("logits_1"))
    only(repository, "input 'logits_1'", model="ensemble")
    name = average_of(repository, prefix="uncertainty_")
    edited = write_interrupted_edit(tmp_path / "edited", "after_config")
    edit(edited, "ensemble", lambda config: setattr(config.ensemble_scheduling.step[-1], "model_name", name))
    only(edited, "two ensembles", model=name, line="string_value")


def test_files_of_two_averaging_models_must_match_their_digests(tmp_path: Path) -> None:
    repository = write_old_repository(tmp_path / "repository")
    model = average_of(repository, "trimmed", "uncertainty_")
    (repository / model / "1/model.onnx").write_bytes(tiny.linear_onnx(1))
    only(repository, "has SHA-256", name="trimmed", model=model)
    edit(repository, model, lambda config: config.parameters.pop("sha256.1"))
    only(repository, "parameter sha256.1", name="trimmed", model=model)


def test_versions_edited_by_hand_are_reported_until_a_reload(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    edit(repository, "ensemble", lambda config: setattr(config.ensemble_scheduling.step[1], "model_version", 2))
    only(repository, "averaging model | other members", model="ensemble", line="average_", is_error=False)
    # The plan of a reload has no findings.
    files = RepositoryView(repository)
    plan = ensemble_files(files, read_ensemble(repository, "ensemble"), Interface(tiny.SHAPE, 3, 8), None)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []


def test_weights_edited_by_hand_are_reported_until_a_reload(repository: Path) -> None:
    edit(repository, average_of(repository), lambda config: setattr(config.parameters["weights"], "string_value", "[1.0, 5.0]"))
    assert [finding.is_error for finding in check(repository)] == [True]
    members = read_ensemble(repository, "ensemble")
    plan = ensemble_files(RepositoryView(repository), members, Interface(tiny.SHAPE, 3, 8), None)
    assert check_ensemble(RepositoryView(repository, plan), "ensemble") == []
