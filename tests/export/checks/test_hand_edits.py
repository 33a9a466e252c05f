"""Hand-edited repositories: every difference from an export is reported."""

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
    planned_files,
    profile_states,
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


def refused_by_all(repository: Path, facts: str) -> None:
    """Both commands that go through all networks refuse, and change nothing."""
    before = content(repository)
    with raises((ProfileError, ConfigError), facts):
        write_profile(repository, "cpu")
    with raises((EngineError, ConfigError), facts):
        planned_engines(repository)
    assert content(repository) == before


def test_reports_a_network_without_a_version(repository: Path) -> None:
    shutil.rmtree(repository / "alpha/1")
    refused_by_all(repository, "no version | served")
    states = {(profile.model, profile.profile): profile.state for profile in profile_states(repository)}
    assert states["alpha", "gpu-tensorrt"] == states["alpha", "cpu"] == "no version that is served"
    assert states["beta", "cpu"] == "not written"
    done = CliRunner().invoke(cli, ["build-engine", "--repository", str(repository), "--dry-run"])
    assert done.exit_code == 1
    assert [engine.name for engine in planned_engines(repository, models=["beta"])] == ["beta@1"]


@pytest.mark.parametrize("text", ["", 'name: "alpha"\n', "max_batch_size: 8\n"])
def test_reports_an_empty_configuration(repository: Path, text: str) -> None:
    (repository / "alpha/config.pbtxt").write_text(text)
    refused_by_all(repository, "alpha/config.pbtxt | backend | platform")


def test_reports_folders_that_are_not_models(repository: Path) -> None:
    for name in ("lost+found", ".git", "notes"):
        (repository / name).mkdir()
    progress: list[str] = []
    assert write_profile(repository, "cpu", on_progress=progress.append) == ["alpha/configs/cpu.pbtxt", "beta/configs/cpu.pbtxt"]
    strays = [f"{repository / name} is not a model" for name in (".git", "lost+found", "notes")]
    assert [line.partition(" (")[0] for line in progress] == strays
    for command in (["profile", "list", "--repository", str(repository)], ["build-engine", "--repository", str(repository), "--dry-run"]):
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.stderr
        assert all(stray in done.stderr for stray in strays)
        assert "alpha" in done.stdout


def test_reports_a_network_without_a_configuration(repository: Path) -> None:
    (repository / "alpha/config.pbtxt").unlink()
    refused_by_all(repository, "alpha | config.pbtxt")


@pytest.mark.parametrize("file", ["/etc/passwd", "../1/model.onnx", "..", "."])
def test_a_model_file_must_be_a_plain_name(repository: Path, file: str) -> None:
    tiny.edit_config(repository, "alpha", default_model_filename=file)
    refused_by_all(repository, "plain name | version's folder")


def test_refuses_a_configuration_of_another_model(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", name="beta")
    facts = """name: "beta" | folder | 'alpha'"""
    refused_by_all(repository, facts)
    with raises(ConfigError, facts):
        planned_files(repository, [tiny.member("alpha", 5)], ensemble=None, replace=True)


def noted(precision: str | None) -> bytes:
    """A tiny network as an export notes it."""
    model = onnx.load_model_from_string(tiny.linear_onnx(1))
    notes = {CLASS_NAMES: json.dumps(tiny.CLASSES)} | ({} if precision is None else {PRECISION: precision})
    onnx.helper.set_model_props(model, notes)
    written: bytes = model.SerializeToString()
    return written


@pytest.mark.parametrize(("own", "stated"), [("int8", "fp32"), (None, "int8"), ("fp16", "fp7")])
def test_a_plan_has_the_precision_of_its_graph(tmp_path: Path, own: str | None, stated: str) -> None:
    repository = tmp_path / "repository"
    write_files(repository, planned_files(repository, [tiny.member("a", onnx=noted(own), precision=own or "fp32")], ensemble=None))
    (planned,) = planned_engines(repository)
    assert planned.request.precision == (own or "fp32")
    set_parameter(repository, "a", "precision.1", stated)
    with raises(EngineError, f"{own or 'fp32'} | config.pbtxt | precision.1 | '{stated}'"):
        planned_engines(repository)


@pytest.mark.parametrize(
    ("weights", "facts"),
    [("[1]", "weights [1]"), ("[" * 100_000, "weights [[[")],
    ids=["too few", "nested"],
)
def test_weights_must_match_the_members(repository: Path, weights: str, facts: str) -> None:
    (average,) = (path.name for path in repository.glob("average_*"))
    set_parameter(repository, average, "weights", weights)
    with raises(EnsembleError, facts):
        read_ensemble(repository, "ensemble")


def test_the_default_name_is_that_of_the_folder(repository: Path) -> None:
    tiny.edit_config(repository, "alpha", name="")
    assert read_config(repository / "alpha").name == ""
    assert len(write_profile(repository, "cpu")) == 2
