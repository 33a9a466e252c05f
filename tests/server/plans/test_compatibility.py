"""TensorRT plans before they are served: manifests, what this machine has (by real libraries and processes), and what does not fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from defensemble_repository.gpus import Gpu
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.plan_manifest import Manifest, OptimizationProfile
from defensemble_server import ServeOptions
from defensemble_server.command import triton_command
from defensemble_server.plans.compatibility import (
    has_version_compatible_plan,
    problem_of_plan,
    problem_of_version,
)
from defensemble_server.plans.machine import Machine
from defensemble_server.repository import read_repository
from defensemble_server.runtime.find import Runtime
from tests.support import tiny
from tests.support.facts import assert_facts

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "570.124.06")
T4 = Gpu("Tesla T4", "7.5", "570.124.06")
A10 = Gpu("NVIDIA A10", "8.6", "570.124.06")
PROFILE = OptimizationProfile(min=(1, 3, 32, 32), opt=(32, 3, 32, 32), max=(64, 3, 32, 32))
MANIFEST = Manifest(
    tensorrt="10.13.3.9",
    gpu=H100.name,
    compute_capability="9.0",
    driver=H100.driver,
    onnx_sha256="a" * 64,
    plan_sha256="b" * 64,
    profile=PROFILE,
    precision="fp16",
    version_compatible=False,
    hardware_compatible=False,
    builder_level=3,
    workspace_bytes=None,
    build_s=12.5,
    date="2026-11-25T12:00:00+00:00",
)
VALUES: dict[str, Any] = json.loads(MANIFEST.to_bytes())
HERE = Machine("10.13.3.9", (H100,))


def problem(manifest: Manifest | None = MANIFEST, machine: Machine = HERE, **other: Any) -> str | None:
    given: dict[str, Any] = {"onnx_sha256": "a" * 64, "plan_sha256": "b" * 64, "max_batch_size": 64} | other
    return problem_of_plan(manifest, machine, **given)


def test_a_plan_that_fits() -> None:
    assert problem() is None
    assert problem(max_batch_size=1) is None
    assert problem(image_shape=(3, 32, 32)) is None
    assert problem(image_shape=(3, -1, -1)) is None
    assert problem(onnx_sha256=None) is None, "the ONNX file need not be there"
    assert problem(machine=Machine("10.13.3", (H100, H100))) is None, "a library without a build number"


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"manifest": None}, "no manifest | model.plan.json"),
        ({"plan_sha256": "c" * 64}, "cccccccccccccccc | bbbbbbbbbbbbbbbb | changed"),
        ({"onnx_sha256": "c" * 64}, "model.onnx | aaaaaaaaaaaaaaaa | cccccccccccccccc"),
        ({"image_shape": (3, 28, 28)}, "config.pbtxt | (3, 28, 28) | (3, 32, 32)"),
        ({"image_shape": (-1, 32, 28)}, "config.pbtxt | (-1, 32, 28) | (3, 32, 32)"),
        (
            {
                "manifest": replace(MANIFEST, profile=OptimizationProfile((1, 3, 28, 28), (32, 3, 28, 28), (64, 3, 28, 28))),
                "image_shape": (3, 32, 32),
            },
            "(3, 28, 28)",
        ),
        (
            {"manifest": replace(MANIFEST, profile=replace(PROFILE, min=(32, 3, 32, 32)))},
            "32 images | 1",
        ),
        ({"max_batch_size": 65}, "max_batch_size is 65 | 64 images"),
        (
            {"machine": Machine("11.4.0.106", (H100,))},
            "TensorRT 10.13.3.9 | NVIDIA H100 80GB HBM3 (compute capability 9.0) | TensorRT 11.4.0.106",
        ),
        ({"machine": Machine("10.13.3.10", (H100,))}, "TensorRT 10.13.3.10"),
        ({"machine": Machine("10.13.3.9", (T4,))}, "Tesla T4 (compute capability 7.5)"),
        ({"machine": Machine("10.13.3.9", (H100, T4))}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_an_incompatible_plan_is_reported_with_the_command_that_fixes_it(given: dict[str, Any], facts: str) -> None:
    got = problem(**given)
    assert got is not None
    assert_facts(got, facts)
    assert "`defensemble build-engine`" in got


@pytest.mark.parametrize(
    ("machine", "facts"),
    [
        (Machine(None, (H100,), why_no_tensorrt="there is no libnvinfer.so on the library path"), "no TensorRT | libnvinfer.so"),
        (Machine("10.13.3.9", (), why_no_gpu="nvidia-smi lists none"), "no GPU | nvidia-smi lists none"),
    ],
)
def test_what_the_machine_lacks_is_reported(machine: Machine, facts: str) -> None:
    got = problem(machine=machine)
    assert got is not None
    assert_facts(got, facts)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.13.3.9", "10.13.3.9", True),
        ("10.13.3.9", "10.14.0.1", True),
        ("10.13.3.9", "10.13.3.10", True),
        ("10.13.3.9", "10.13.2.6", False),
        ("10.13.3.9", "10.9.0.34", False),
        ("10.13.3.9", "11.0.0.1", True),
        ("11.0.0.1", "10.13.3.9", False),
        ("8.6.1.6", "10.0.1.6", True),
        ("8.6.1.6", "11.4.0.106", False),
        ("11.0.0.1", "11.4.0.106", True),
    ],
)
def test_a_version_compatible_plan_runs_on_the_documented_versions(built: str, here: str, fits: bool) -> None:
    manifest = replace(MANIFEST, tensorrt=built, version_compatible=True)
    got = problem(manifest, Machine(here, (H100,)))
    assert (got is None) == fits
    if got is not None:
        assert "version compatible" in got


def test_a_hardware_compatible_plan_runs_from_ampere_on() -> None:
    manifest = replace(MANIFEST, hardware_compatible=True)
    assert problem(manifest, Machine("10.13.3.9", (A10, H100))) is None
    got = problem(manifest, Machine("10.13.3.9", (T4,)))
    assert got is not None
    assert_facts(got, "hardware compatible | 8.0 | Tesla T4")
    turing = replace(manifest, gpu=T4.name, compute_capability=T4.compute_capability)
    assert problem(turing, Machine("10.13.3.9", (T4,))) is None


def test_a_version_of_a_model_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "keep0.3"
    place = folder / "2"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(b"graph")

    def problem() -> str | None:
        return problem_of_version(folder, 2, HERE, max_batch_size=64)

    rebuild = f"`defensemble build-engine keep0.3 --repository '{tmp_path}/my models' --version 2`"
    assert_facts(problem() or "", f"version 2 | {place / 'model.plan'} | missing | {rebuild}")
    (place / "model.plan").write_bytes(b"plan")
    assert str(problem()).endswith(f"rebuild with {rebuild}")
    values = VALUES | {"onnx_sha256": hashlib.sha256(b"graph").hexdigest(), "plan_sha256": hashlib.sha256(b"plan").hexdigest()}
    (place / "model.plan.json").write_text(json.dumps(values))
    assert problem() is None
    (place / "model.onnx").write_bytes(b"another graph")
    assert "another model.onnx" in str(problem())
    (place / "model.plan.json").write_text("{")
    assert str(problem()).startswith(f"version 2: {place / 'model.plan.json'} is damaged")
    assert rebuild in str(problem())


@pytest.mark.parametrize("version_compatible", [False, True])
def test_triton_is_configured_to_load_version_compatible_plans(tmp_path: Path, version_compatible: bool) -> None:
    folder = tiny.write_repository(tmp_path / "repository", ensemble=None)
    path = folder / "alpha/config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    config.backend = "tensorrt"
    del config.parameters["sha256.1"]
    path.write_bytes(pbtxt_from_config(config))
    (folder / "alpha/1/model.plan").write_bytes(b"plan")
    (folder / "alpha/1/model.plan.json").write_text(json.dumps(VALUES | {"version_compatible": version_compatible}))
    content = read_repository(folder)
    assert sorted(content.models) == ["alpha", "beta"]
    assert has_version_compatible_plan(content) == version_compatible
    command = triton_command(
        Runtime("path", Path("tritonserver")),
        folder,
        ["alpha"],
        options=ServeOptions(runtime="path"),
        ports={"http": 1, "grpc": 2, "metrics": 3},
        admin_key="k" * 32,
        threads=1,
        version_compatible_plans=has_version_compatible_plan(content),
    )
    assert ("--backend-config=tensorrt,version-compatible=true" in command) == version_compatible
