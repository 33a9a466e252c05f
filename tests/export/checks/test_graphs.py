"""Checks of model files: graphs and digests, links, profiles, TensorRT plans."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from defensemble_export import write_profile
from defensemble_repository.plan_manifest import Manifest, OptimizationProfile
from defensemble_repository.reader import read_config
from tests.export.checks.test_ensemble import average_of, check, edit, only, replace
from tests.repository.test_plan_manifest import MANIFEST
from tests.support import tiny
from tests.support.facts import assert_facts


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tiny.write_repository(tmp_path / "repository")


def test_missing_model_files(repository: Path) -> None:
    tiny.write_second_version(repository, "beta", 7)
    (repository / "beta/2/model.onnx").unlink()
    finding = only(repository, "Triton", model="beta")
    assert finding.file == repository / "beta/2/model.onnx"
    (repository / "beta/1/model.onnx").rename(repository / "beta/1/other.onnx")
    edit(repository, "beta", lambda config: config.version_policy.specific.versions.append(1))
    assert_facts(only(repository, "export", model="beta").text, "version 1 | model file")
    edit(repository, "beta", lambda config: setattr(config, "default_model_filename", "other.onnx"))
    assert check(repository) == []


def test_files_are_compared_with_their_digests(repository: Path) -> None:
    (repository / "beta/1/model.onnx").write_bytes(tiny.linear_onnx(99))
    only(repository, "changed | damaged", model="beta")
    edit(repository, "beta", lambda config: config.parameters.pop("sha256.1"))
    assert check(repository) == []


def test_links_that_lead_out_of_the_repository(repository: Path) -> None:
    store = repository.parent / "store"
    store.mkdir()
    for model in ("beta", "ensemble"):
        (repository / model).rename(store / model)
        (repository / model).symlink_to(store / model)
    findings = {finding.model: finding for finding in check(repository)}
    assert {model: finding.is_error for model, finding in findings.items()} == {"beta": False, "ensemble": True}
    assert "copy" in findings["ensemble"].text
    (repository / "beta").unlink()
    (repository / "beta").symlink_to(repository / "beta")
    assert_facts(check(repository)[-1].text, "step 2 | beta")


def test_profiles_must_match_their_configuration(repository: Path) -> None:
    write_profile(repository, "cpu")
    path = repository / "beta/configs/cpu.pbtxt"
    whole = path.read_text()
    for old, new, facts, line in (
        ("max_batch_size: 8", "max_batch_size: 4", "profile | max_batch_size: 4 | config.pbtxt | 8", "max_batch_size"),
        ("dims: 4", "dims: 5", "profile | inputs | images FP32 [1, 5, 4]", "input"),
        ("  dims: 3", "  dims: 4", "profile | outputs | logits FP32 [4]", "output"),
        ('name: "beta"', 'name: "gamma"', "model | 'beta'", "name"),
        ("  all {\n  }\n", "  specific {\n    versions: 2\n  }\n", "version 1 | profile", "version_policy"),
        ("backend:", "backend: [", "configuration", "backend: ["),
        (json.dumps(read_config(repository / "beta").parameters["sha256.1"].string_value), '"abc"', "sha256.1 | abc...", "abc"),
    ):
        path.write_text(whole)
        replace(path, old, new)
        finding = only(repository, facts, model="beta", line=line)
        assert finding.file == path


def test_averaging_models_and_ensembles_have_no_profiles(repository: Path) -> None:
    for model in (average_of(repository), "ensemble"):
        path = repository / model / "configs/gpu.pbtxt"
        path.parent.mkdir()
        shutil.copy(repository / model / "config.pbtxt", path)
        finding = only(repository, "no profile", model=model)
        assert finding.file == path
        path.unlink()


def write_plans(repository: Path, **other: Any) -> None:
    """A plan of each member, which no TensorRT has built, its manifest, and the profile that serves it."""
    for model in ("alpha", "beta"):
        place = repository / model / "1"
        (place / "model.plan").write_bytes(f"plan of {model}".encode())
        (place / "model.plan.json").write_bytes(manifest(place, **other).to_bytes())
    write_profile(repository, "gpu-tensorrt")


def manifest(place: Path, **other: Any) -> Manifest:
    shapes = OptimizationProfile((1, *tiny.SHAPE), (8, *tiny.SHAPE), (8, *tiny.SHAPE))
    digests: dict[str, Any] = {f"{kind}_sha256": sha256((place / f"model.{kind}").read_bytes()).hexdigest() for kind in ("onnx", "plan")}
    return msgspec.structs.replace(MANIFEST, **{"profile": shapes, **digests, **other})


def test_matching_plans_have_no_findings(repository: Path) -> None:
    write_plans(repository)
    assert check(repository) == []


@pytest.mark.parametrize(
    ("shapes", "facts"),
    [
        (((1, 1, 4, 4), (4, 1, 4, 4), (4, 1, 4, 4)), "max_batch_size | 8 | at most 4 images"),
        (((2, 1, 4, 4), (8, 1, 4, 4), (8, 1, 4, 4)), "plan | 2 images"),
        (((1, 1, 5, 5), (8, 1, 5, 5), (8, 1, 5, 5)), "[1, 5, 5] | [1, 4, 4]"),
    ],
)
def test_plan_with_other_shapes(repository: Path, shapes: tuple[tuple[int, ...], ...], facts: str) -> None:
    write_plans(repository)
    place = repository / "beta/1"
    (place / "model.plan.json").write_bytes(manifest(place, profile=OptimizationProfile(*shapes)).to_bytes())
    finding = only(repository, facts, model="beta")
    assert f"`defensemble build-engine beta --repository {repository} --version 1 --force`" in finding.text
    assert finding.file == place / "model.plan.json"


def test_plan_without_a_matching_manifest(repository: Path) -> None:
    write_plans(repository)
    place = repository / "beta/1"
    (place / "model.plan.json").write_text("{}")
    only(repository, "the plan's manifest is damaged", model="beta")
    (place / "model.plan.json").write_bytes(manifest(place, plan_sha256="b" * 64).to_bytes())
    assert only(repository, "plan | changed", model="beta").file == place / "model.plan"
    (place / "model.plan.json").write_bytes(manifest(place, onnx_sha256="b" * 64).to_bytes())
    assert only(repository, "another model.onnx", model="beta").file == place / "model.onnx"
    (place / "model.plan.json").unlink()
    only(repository, "version 1 | no manifest", model="beta")
    (place / "model.plan").unlink()
    only(repository, "version 1 | model file", model="beta")


def test_plan_missing_in_its_profile(repository: Path) -> None:
    write_plans(repository)
    (repository / "beta/1/model.plan").write_bytes(b"another plan")
    finding = only(repository, "beta/configs/gpu-tensorrt.pbtxt", model="beta")
    assert finding.file == repository / "beta/1/model.plan"


def test_a_configuration_may_serve_a_plan(repository: Path) -> None:
    write_plans(repository)
    shutil.move(repository / "beta/configs/gpu-tensorrt.pbtxt", repository / "beta/config.pbtxt")
    assert check(repository) == []
    (repository / "beta/1/model.plan.json").unlink()
    only(repository, "no manifest", model="beta")
