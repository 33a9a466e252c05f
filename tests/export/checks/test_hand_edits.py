"""Repositories that a hand has been in: what is not as an export left it is told, and never passed over or believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_export import (
    EngineError,
    EnsembleError,
    ProfileError,
    planned_engines,
    profile_states,
    repository_plan,
    write_files,
    write_profile,
)
from defensemble_repository.errors import ConfigError
from defensemble_repository.onnx_metadata import CLASS_NAMES, PRECISION
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_config, read_ensemble
from tests.support import tiny
from tests.support.broken import content
from tests.support.facts import raises


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny.write_repository(tmp_path / "place" / "repository")


def set_parameter(repository: Path, model: str, key: str, value: str) -> None:
    path = repository / model / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), model)
    config.parameters[key].string_value = value
    path.write_bytes(pbtxt_from_config(config))


def refused_by_all(repository: Path, told: str) -> None:
    """Both commands that go through all networks refuse, and change nothing."""
    before = content(repository)
    with raises((ProfileError, ConfigError), told):
        write_profile(repository, "cpu")
    with raises((EngineError, ConfigError), told):
        planned_engines(repository)
    assert content(repository) == before


def test_a_network_without_a_version_is_not_passed_over(repository: Path) -> None:
    shutil.rmtree(repository / "alpha/1")
    refused_by_all(repository, "no version | served")
    found = {(one.model, one.profile): one.state for one in profile_states(repository)}
    assert found["alpha", "gpu-tensorrt"] == found["alpha", "cpu"] == "no version that is served"
    assert found["beta", "cpu"] == "not written"
    done = CliRunner().invoke(cli, ["build-engine", "--repository", str(repository), "--dry-run"])
    assert done.exit_code == 1
    assert [one.name for one in planned_engines(repository, models=["beta"])] == ["beta@1"]


@pytest.mark.parametrize("text", ["", 'name: "alpha"\n', "max_batch_size: 8\n"])
def test_a_configuration_that_says_nothing_is_told(repository: Path, text: str) -> None:
    (repository / "alpha/config.pbtxt").write_text(text)
    refused_by_all(repository, "alpha/config.pbtxt | backend | platform")


def test_folders_that_are_no_models_are_told_and_left_alone(repository: Path) -> None:
    for name in ("lost+found", ".git", "notes"):
        (repository / name).mkdir()
    said: list[str] = []
    assert write_profile(repository, "cpu", on_progress=said.append) == ["alpha/configs/cpu.pbtxt", "beta/configs/cpu.pbtxt"]
    strays = [f"{repository / name} is not a model" for name in (".git", "lost+found", "notes")]
    assert [line.partition(" (")[0] for line in said] == strays
    for command in (["profile", "list", "--repository", str(repository)], ["build-engine", "--repository", str(repository), "--dry-run"]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.stderr
        assert all(stray in done.stderr for stray in strays)
        assert "alpha" in done.stdout


def test_a_network_whose_configuration_is_gone_is_no_stray_folder(repository: Path) -> None:
    (repository / "alpha/config.pbtxt").unlink()
    refused_by_all(repository, "alpha | config.pbtxt")


@pytest.mark.parametrize("file", ["/etc/passwd", "../1/model.onnx", "..", "."])
def test_a_model_s_file_is_a_plain_name(repository: Path, file: str) -> None:
    tiny.edit_config(repository, "alpha", default_model_filename=file)
    refused_by_all(repository, "plain name | version's folder")


def test_a_configuration_that_names_another_model_is_refused(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", name="beta")
    told = """name: "beta" | folder | 'alpha'"""
    refused_by_all(repository, told)
    with raises(ConfigError, told):
        repository_plan(repository, [tiny.member("alpha", 5)], ensemble=None, replace=True)


def noted(precision: str | None) -> bytes:
    """A tiny network as an export notes it."""
    model = onnx.load_model_from_string(tiny.linear_onnx(1))
    notes = {CLASS_NAMES: json.dumps(tiny.CLASSES)} | ({} if precision is None else {PRECISION: precision})
    onnx.helper.set_model_props(model, notes)
    written: bytes = model.SerializeToString()
    return written


@pytest.mark.parametrize(("own", "stated"), [("int8", "fp32"), (None, "int8"), ("fp16", "fp7")])
def test_a_plan_is_judged_by_what_its_graph_computes_in(tmp_path: Path, own: str | None, stated: str) -> None:
    repository = tmp_path / "repository"
    write_files(repository, repository_plan(repository, [tiny.member("a", onnx=noted(own), precision=own or "fp32")], ensemble=None))
    (planned,) = planned_engines(repository)
    assert planned.request.precision == (own or "fp32")
    set_parameter(repository, "a", "precision.1", stated)
    with raises(EngineError, f"{own or 'fp32'} | config.pbtxt | precision.1 | '{stated}'"):
        planned_engines(repository)


@pytest.mark.parametrize(
    ("weights", "told"),
    [("[1]", "weights [1]"), ("[" * 100_000, "weights [[[")],
    ids=["too few", "nested"],
)
def test_weights_that_do_not_fit_the_votes(repository: Path, weights: str, told: str) -> None:
    (average,) = (path.name for path in repository.glob("average_*"))
    set_parameter(repository, average, "weights", weights)
    with raises(EnsembleError, told):
        read_ensemble(repository, "ensemble")


def test_a_name_left_out_is_the_folder_s(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", name="")
    assert read_config(repository / "alpha").name == ""
    assert len(write_profile(repository, "cpu")) == 2
