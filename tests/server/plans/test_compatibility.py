"""TensorRT plans before they are served: manifests, what this machine has (by real libraries and processes), and what does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from defensemble_export import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.plan_manifest import Manifest, Profile
from defensemble_server import PlanError, ServeOptions, read_repository
from defensemble_server.options import triton_command
from defensemble_server.plans.compatibility import (
    Gpu,
    Machine,
    hold_code,
    problem_of_plan,
    problem_of_version,
    read_machine,
    tensorrt_version,
)
from defensemble_server.runtime.backend_build import find_compiler
from defensemble_server.runtime.find import Runtime
from tests.support import tiny
from tests.support.facts import assert_facts, raises

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "570.124.06")
T4 = Gpu("Tesla T4", "7.5", "570.124.06")
A10 = Gpu("NVIDIA A10", "8.6", "570.124.06")
PROFILE = Profile(min=(1, 3, 32, 32), opt=(32, 3, 32, 32), max=(64, 3, 32, 32))
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
    assert problem(machine=Machine("10.13.3", (H100, H100))) is None, "a library that does not say its build number"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"manifest": None}, "no manifest | model.plan.json"),
        ({"plan_sha256": "c" * 64}, "cccccccccccccccc | bbbbbbbbbbbbbbbb | changed"),
        ({"onnx_sha256": "c" * 64}, "model.onnx | aaaaaaaaaaaaaaaa | cccccccccccccccc"),
        ({"image_shape": (3, 28, 28)}, "config.pbtxt | (3, 28, 28) | (3, 32, 32)"),
        ({"image_shape": (-1, 32, 28)}, "config.pbtxt | (-1, 32, 28) | (3, 32, 32)"),
        (
            {"manifest": replace(MANIFEST, profile=Profile((1, 3, 28, 28), (32, 3, 28, 28), (64, 3, 28, 28))), "image_shape": (3, 32, 32)},
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
def test_what_does_not_fit_is_told_with_the_command_that_mends_it(given: dict[str, Any], told: str) -> None:
    got = problem(**given)
    assert got is not None
    assert_facts(got, told)
    assert "`defensemble build-engine`" in got


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (Machine(None, (H100,), why_no_tensorrt="there is no libnvinfer.so on the library path"), "no TensorRT | libnvinfer.so"),
        (Machine("10.13.3.9", (), why_no_gpu="nvidia-smi lists none"), "no GPU | nvidia-smi lists none"),
    ],
)
def test_what_is_missing_here_is_told(machine: Machine, told: str) -> None:
    got = problem(machine=machine)
    assert got is not None
    assert_facts(got, told)


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


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a folder with a real `libnvinfer.so.<major>` that exports what TensorRT's does to say its version."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler to make a library with")

    def compiled(major: int, **exported: int) -> Path:
        folder = tmp_path_factory.mktemp("tensorrt")
        source = folder / "stub.cc"
        source.write_text("".join(f'extern "C" int {name}() {{ return {value}; }}\n' for name, value in exported.items()))
        subprocess.run([*compiler.command, "-shared", "-fPIC", "-o", str(folder / f"libnvinfer.so.{major}"), str(source)], check=True)
        return folder

    return compiled


def on_path(*folders: Path) -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders))}


def test_the_version_is_that_of_the_library_that_the_loader_finds(library: Callable[..., Path]) -> None:
    ten = library(10, getInferLibVersion=101303, getInferLibBuildVersion=9)
    eleven = library(11, getInferLibVersion=110400, getInferLibBuildVersion=106)
    assert tensorrt_version(on_path(ten)) == ("10.13.3.9", "")
    assert tensorrt_version(on_path(ten, eleven)) == ("11.4.0.106", ""), "the newest"
    assert tensorrt_version(on_path(library(10, getInferLibVersion=101303))) == ("10.13.3", "")
    assert tensorrt_version(on_path(library(8, getInferLibVersion=8601))) == ("8.6.1", "")


def test_no_library_or_one_that_is_none(library: Callable[..., Path], tmp_path: Path) -> None:
    if tensorrt_version(on_path())[0] is not None:
        pytest.skip("this machine has TensorRT: that it is missing cannot be seen here")
    version, why = tensorrt_version(on_path(tmp_path))
    assert version is None
    assert_facts(why, "libnvinfer.so | library path")
    version, why = tensorrt_version(on_path(library(10, somethingElse=1)))
    assert version is None
    assert_facts(why, "libnvinfer.so.10 | getInferLibVersion")
    (tmp_path / "libnvinfer.so.10").write_bytes(b"no library")
    version, why = tensorrt_version(on_path(tmp_path))
    assert version is None
    assert "libnvinfer.so.10" in why


def test_a_python_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="TensorRT"):
        tensorrt_version(python=[str(tmp_path / "none")])
    with raises(PlanError, "status 3 | no such image"):
        tensorrt_version(python=["sh", "-c", "echo no such image >&2; exit 3", "sh"])


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1"}


def test_the_gpus_are_those_that_nvidia_smi_lists(library: Callable[..., Path], tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    environment = nvidia_smi(tmp_path / "bin", f"echo \"$@\" > {asked}\necho '{H100.name}, 9.0, {H100.driver}'\necho 'A, B, 8.6, 1.2'")
    libraries = library(10, getInferLibVersion=101303, getInferLibBuildVersion=9)
    machine = read_machine({**environment, "LD_LIBRARY_PATH": str(libraries)})
    assert machine == Machine("10.13.3.9", (H100, Gpu("A, B", "8.6", "1.2")))
    assert asked.read_text() == "--query-gpu=name,compute_cap,driver_version --format=csv,noheader --id=0,1\n"
    del environment["CUDA_VISIBLE_DEVICES"]
    read_machine(environment)
    assert asked.read_text() == "--query-gpu=name,compute_cap,driver_version --format=csv,noheader\n"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ('echo "couldn\'t communicate with the NVIDIA driver" >&2; exit 9', "status 9 | couldn't communicate with the NVIDIA driver"),
        ("echo No devices were found; exit 6", "status 6 | No devices were found"),
        ("true", "none"),
        ("echo strange", "'strange'"),
    ],
)
def test_no_gpu_and_why(tmp_path: Path, script: str, told: str) -> None:
    machine = read_machine(nvidia_smi(tmp_path / "bin", script))
    assert machine.gpus == ()
    assert_facts(machine.why_no_gpu, told)


def test_no_driver_and_a_gpu_that_is_hidden(tmp_path: Path) -> None:
    assert_facts(read_machine({"PATH": str(tmp_path)}, python=[sys.executable, "-S"]).why_no_gpu, "nvidia-smi | PATH | driver")
    hidden = {**nvidia_smi(tmp_path / "bin", "echo 'X, 9.0, 1'"), "CUDA_VISIBLE_DEVICES": ""}
    assert read_machine(hidden).why_no_gpu == "CUDA_VISIBLE_DEVICES is ''"


def test_a_version_of_a_model_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "my models" / "keep0.3"
    place = folder / "2"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(b"graph")

    def problem() -> str | None:
        return problem_of_version(folder, 2, HERE, max_batch_size=64)

    rebuild = f"`defensemble build-engine '{tmp_path}/my models' --model keep0.3 --version 2`"
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
def test_triton_is_told_to_load_plans_that_are_version_compatible(tmp_path: Path, version_compatible: bool) -> None:
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
    assert hold_code(content) == version_compatible
    command = triton_command(
        Runtime("path", Path("tritonserver")),
        folder,
        ["alpha"],
        options=ServeOptions(runtime="path"),
        ports={"http": 1, "grpc": 2, "metrics": 3},
        admin_key="k" * 32,
        threads=1,
        plans_hold_code=hold_code(content),
    )
    assert ("--backend-config=tensorrt,version-compatible=true" in command) == version_compatible
