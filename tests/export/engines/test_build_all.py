"""Plans of a repository: selection of models, up-to-date plans, comparison, and no leftovers after failures."""

from __future__ import annotations

import fcntl
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble_export import EngineError, EngineOptions, ExportError, build_engines, fuse_repository, planned_engines
from defensemble_repository.gpus import Gpu
from defensemble_repository.onnx_metadata import CLASS_NAMES, RECORD
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.plan_manifest import read_manifest
from defensemble_server.plans.compatibility import problem_of_version
from defensemble_server.plans.machine import Machine
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.broken import content
from tests.support.facts import assert_facts, raises
from tests.support.fake_tensorrt import GPU, MARK, FakeTensorRT, install_runner, install_tensorrt

IMAGES = tiny.images(20)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with `alpha` (two versions), `beta` and their ensemble."""
    folder = tiny.write_repository(tmp_path / "repository")
    tiny.write_second_version(folder, "alpha", 3)
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRT:
    install_runner(monkeypatch)
    return install_tensorrt(monkeypatch, tmp_path)


def names(repository: Path, **options: Any) -> list[str]:
    return [one.name for one in planned_engines(repository, **options)]


def test_plans_are_for_members_and_fused_graphs_not_for_averages(repository: Path) -> None:
    assert names(repository) == ["alpha@1", "alpha@2", "beta@1"]
    fuse_repository(repository, "ensemble", "fused")
    assert names(repository) == ["alpha@1", "alpha@2", "beta@1", "fused@1"]
    assert names(repository, models=["fused", "alpha"], versions=[1]) == ["alpha@1", "fused@1"]
    assert names(repository, versions=[2]) == ["alpha@2"]
    (first, *_) = planned_engines(repository, models=["alpha"], options=EngineOptions(opt_batch=2, builder_level=1))
    assert first.request.profile.max == (8, *tiny.SHAPE), "the model's max_batch_size"
    assert (first.request.profile.opt[0], first.request.builder_level, first.request.precision) == (2, 1, "fp32")


def test_only_the_served_version_of_a_fused_graph_gets_a_plan(repository: Path) -> None:
    fuse_repository(repository, "ensemble", "fused")
    fuse_repository(repository, "ensemble", "fused", replace=True)
    assert names(repository, models=["fused"]) == ["fused@2"]
    assert names(repository, models=["fused"], versions=[1, 2]) == ["fused@1", "fused@2"]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"models": ["gamma"]}, "'gamma' | alpha, beta"),
        ({"models": ["ensemble"]}, "'ensemble' | members"),
        ({"models": ["alpha"], "versions": [3]}, "'alpha' | version 3 | 1, 2"),
        ({"versions": [7]}, "alpha, beta | version 7"),
        ({"options": EngineOptions(opt_batch=9)}, "alpha@1 | 1, 9 and 8"),
    ],
)
def test_unknown_models_and_versions_are_named(repository: Path, options: dict[str, Any], facts: str) -> None:
    with raises(EngineError, facts):
        planned_engines(repository, **options)


def test_naming_an_average_is_rejected_with_the_reason(repository: Path) -> None:
    (average,) = (path.name for path in repository.glob("average_*"))
    with raises(EngineError, "logits_0, logits_1 | ONNX Runtime"):
        planned_engines(repository, models=[average])


def test_a_missing_or_empty_repository_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"model repository .* does not exist"):
        planned_engines(tmp_path / "none")
    with pytest.raises(EngineError, match="no model"):
        planned_engines(tmp_path)


def test_a_changed_or_missing_graph_is_rejected(repository: Path) -> None:
    graph = repository / "alpha/2/model.onnx"
    graph.write_bytes(tiny.linear_onnx(4))
    with raises(EngineError, "alpha/2/model.onnx | SHA-256 | config.pbtxt | changed | damaged"):
        planned_engines(repository)
    graph.unlink()
    with pytest.raises(EngineError, match=r"alpha/2/model.onnx is missing; export 'alpha' again"):
        planned_engines(repository)


def test_plans_are_built_compared_and_written_with_their_manifests(repository: Path, fake: FakeTensorRT, tmp_path: Path) -> None:
    before = content(repository)
    lines: list[str] = []
    built = build_engines(repository, images=IMAGES, on_progress=lines.append, options=EngineOptions(opt_batch=4))
    assert [(one.model, one.version, one.built) for one in built] == [("alpha", 1, True), ("alpha", 2, True), ("beta", 1, True)]
    assert fake.calls.count("build") == 3
    added = set(content(repository)) - set(before)
    assert added == {f"{place}/{name}" for place in ("alpha/1", "alpha/2", "beta/1") for name in ("model.plan", "model.plan.json")}
    assert {path: value for path, value in content(repository).items() if path in before} == before, "nothing else is touched"
    assert (repository / "beta/1/model.plan").read_bytes() == MARK + (repository / "beta/1/model.onnx").read_bytes()
    assert read_manifest(repository / "beta/1/model.plan.json") == built[2].manifest
    assert built[0].agreement is not None
    assert lines[0].startswith("alpha@1: built in ")
    assert_facts(lines[0], "batches of 1 to 8 | 4 | fp32 | 100.00%")
    timings = list((tmp_path / "cache/defensemble/timings").iterdir())
    assert [path.name for path in timings] == ["10.13.3.9-NVIDIA-H100-80GB-HBM3-9.0.cache"]
    # The repository can still be read, and the plans served.
    assert read_repository(repository).problems == {}
    machine = Machine("10.13.3.9", (Gpu(*GPU),))
    assert problem_of_version(repository / "alpha", 2, machine, max_batch_size=8) is None
    assert "this server has TensorRT 11.4.0" in str(
        problem_of_version(repository / "alpha", 2, Machine("11.4.0", machine.gpus), max_batch_size=8)
    )


def test_plans_that_are_up_to_date_are_kept(repository: Path, fake: FakeTensorRT) -> None:
    def build(**options: Any) -> list[str]:
        return [f"{one.model}@{one.version}" for one in build_engines(repository, compare=False, **options) if one.built]

    assert build() == ["alpha@1", "alpha@2", "beta@1"]
    files = {path: path.stat().st_mtime_ns for path in repository.rglob("model.plan*")}
    assert build() == []
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("model.plan*")} == files
    assert build(force=True, models=["beta"]) == ["beta@1"]
    assert build(options=EngineOptions(builder_level=5)) == ["alpha@1", "alpha@2", "beta@1"]
    options = EngineOptions(builder_level=5)
    (repository / "alpha/1/model.plan").write_bytes(b"changed")
    (repository / "alpha/2/model.plan.json").write_text("{")
    (repository / "beta/1/model.plan").unlink()
    assert build(options=options) == ["alpha@1", "alpha@2", "beta@1"]
    values = json.loads((repository / "beta/1/model.plan.json").read_text())
    (repository / "beta/1/model.plan.json").write_text(json.dumps(values | {"tensorrt": "10.12.0.1"}))
    assert build(options=options) == ["beta@1"]


def test_precision_and_batch_come_from_the_configuration(repository: Path, fake: FakeTensorRT) -> None:
    path = repository / "beta/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "beta")
    config.max_batch_size = 5
    config.parameters["precision.1"].string_value = "fp16"
    path.write_bytes(pbtxt_from_config(config))
    (built,) = build_engines(repository, models=["beta"], compare=False)
    assert (built.manifest.precision, built.manifest.profile.max[0]) == ("fp16", 5)
    config.parameters["precision.1"].string_value = "fp8"
    path.write_bytes(pbtxt_from_config(config))
    with raises(EngineError, "beta@1 | precision | fp32, fp16, int8 | 'fp8'"):
        build_engines(repository, models=["beta"], compare=False)


def test_a_plan_with_different_outputs_is_not_kept(repository: Path, fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(repository)
    install_runner(monkeypatch, add=0.5)
    with pytest.raises(EngineError, match="between the plan and its graph"):
        build_engines(repository, images=IMAGES)
    assert content(repository) == before
    assert [path.name for path in repository.parent.glob(".*")] == []
    assert len(build_engines(repository, compare=False)) == 3, "where nobody asks, it is taken"


def test_images_of_another_size_are_rejected_before_the_first_build(repository: Path, fake: FakeTensorRT) -> None:
    with pytest.raises(EngineError, match=r"plans are compared .*\(N, 1, 4, 4\) .* got \(20, 1, 5, 5\)"):
        build_engines(repository, images=tiny.images(20, shape=(1, 5, 5)))
    assert fake.calls == []


def test_a_failed_build_keeps_the_plans_built_before_it(repository: Path, fake: FakeTensorRT) -> None:
    def lose_memory() -> None:
        if fake.calls.count("build") == 2:
            fake.plan = None

    fake.during_build = lose_memory
    with pytest.raises(EngineError, match=r"alpha/2/model\.onnx"):
        build_engines(repository, compare=False)
    assert [str(path.relative_to(repository)) for path in sorted(repository.rglob("model.plan*"))] == [
        "alpha/1/model.plan", "alpha/1/model.plan.json"
    ]  # fmt: skip


def test_a_failed_write_keeps_the_old_files(repository: Path, fake: FakeTensorRT) -> None:
    build_engines(repository, models=["beta"], compare=False)
    before = content(repository)
    fake.plan = MARK + b"x" * 100_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a real write fails
    try:
        with pytest.raises(OSError, match=r"File too large: .*model\.plan"):
            build_engines(repository, models=["beta"], compare=False, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(repository) == before
    assert [path.name for path in repository.parent.glob(".*")] == []


def test_a_graph_changed_during_the_build_discards_its_plan(repository: Path, fake: FakeTensorRT) -> None:
    def change() -> None:
        (repository / "beta/1/model.onnx").write_bytes(tiny.linear_onnx(9))

    fake.during_build = change
    with raises(EngineError, "beta/1/model.onnx | changed | not kept"):
        build_engines(repository, models=["beta"], compare=False)
    assert list(repository.rglob("model.plan*")) == []


def test_a_graph_replaced_during_another_build_is_detected(repository: Path, fake: FakeTensorRT) -> None:
    def replace_beta() -> None:
        (repository / "beta/1/model.onnx").write_bytes(tiny.linear_onnx(9))

    fake.during_build = replace_beta
    with raises(EngineError, "beta/1/model.onnx | changed | not kept"):
        build_engines(repository, models=["alpha", "beta"], versions=[1], compare=False)
    assert [str(path.parent.relative_to(repository)) for path in repository.rglob("model.plan")] == ["alpha/1"]


def test_the_lock_is_held_for_writing_but_not_for_building(repository: Path, fake: FakeTensorRT) -> None:
    free: list[bool] = []

    def look() -> None:
        descriptor = os.open(repository.parent, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free.append(True)
        os.close(descriptor)

    fake.during_build = look
    stale = repository.parent / ".repository.staging-a1b2_c3d"
    stale.mkdir()
    lines: list[str] = []
    build_engines(repository, models=["beta"], compare=False, on_progress=lines.append)
    assert free == [True]
    assert_facts(lines[0], f"{stale}")


def test_images_come_from_the_dataset_of_the_network(repository: Path, fake: FakeTensorRT) -> None:
    with pytest.raises(EngineError, match=r"--images FILE\.npy"):
        build_engines(repository, models=["beta"])
    assert fake.calls == [], "found before the build"

    model = onnx.load_model_from_string(tiny.linear_onnx(1, (1, 16, 16), 10))
    onnx.helper.set_model_props(
        model, {RECORD: json.dumps({"data": "digits"}), CLASS_NAMES: json.dumps([str(digit) for digit in range(10)])}
    )
    other = tiny.write_repository(repository.parent / "other", {"digits": 1})
    path = other / "digits/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "digits")
    config.input[0].dims[:] = [1, 16, 16]
    config.output[0].dims[:] = [10]
    del config.parameters["sha256.1"]
    path.write_bytes(pbtxt_from_config(config))
    (other / "digits/1/model.onnx").write_bytes(model.SerializeToString())
    (built,) = build_engines(other)
    assert built.agreement is not None
    assert built.agreement.images > 300, "all test images of the digits"


def test_build_engines_without_tensorrt_explains_how_to_get_it(repository: Path) -> None:
    with pytest.raises(EngineError, match="docker compose --profile gpu run --rm engines"):
        build_engines(repository)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["build-engine", *map(str, arguments)])


def test_the_command_builds_plans_and_reports_them(repository: Path, fake: FakeTensorRT, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    log = tmp_path / "tensorrt.log"
    options: list[str | Path] = [
        "--images",
        tmp_path / "images.npy",
        "--opt-batch",
        "2",
        "--level",
        "1",
        "--workspace",
        "0.5",
        "--log",
        log,
    ]
    cache = tmp_path / "kept.cache"
    result = run("beta", "--repository", repository, "--hardware-compatible", "--timing-cache", cache, *options)
    assert result.exit_code == 0, result.output
    assert_facts(result.stdout.splitlines()[0], f"{repository} | 1 plan | 0")
    assert result.stdout.splitlines()[1].endswith(f" profile write gpu-tensorrt --repository {repository}, then")
    assert result.stdout.splitlines()[2].endswith(f" serve --repository {repository} --profile gpu-tensorrt")
    assert "TensorRT: Building Engine, 2 steps\nTensorRT: Building Engine done\nbeta@1: built in " in result.stderr
    manifest = read_manifest(repository / "beta/1/model.plan.json")
    assert manifest is not None
    assert (manifest.profile.opt[0], manifest.builder_level, manifest.workspace_bytes) == (2, 1, 2**29)
    assert (manifest.hardware_compatible, manifest.version_compatible) == (True, False)
    assert cache.exists()
    assert log.exists()


def test_a_dry_run_needs_no_tensorrt(repository: Path) -> None:
    before = content(repository)
    result = run("alpha", "--repository", repository, "--dry-run", "--version", "2", "--version-compatible")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"alpha@2: {repository}/alpha/2/model.onnx (fp32) to model.plan and model.plan.json, by"
    assert "  builder_config.set_flag(flag=tensorrt.BuilderFlag.VERSION_COMPATIBLE)" in lines
    assert lines[-1] == "  serialized_network = builder.build_serialized_network(network=network, config=builder_config)"
    assert content(repository) == before


def test_the_command_rejects_invalid_options(repository: Path) -> None:
    assert_facts(run("--repository", repository, "--no-compare", "--dataset", "digits").stderr, "--images | --dataset")
    assert "is not in the range 0<x<=4096" in run("--repository", repository, "--workspace", "0").stderr
    missing = run("--repository", repository, "--no-compare")
    assert missing.exit_code == 1
    assert_facts(missing.stderr, "Error: TensorRT's Python package")
    assert issubclass(EngineError, ExportError)
