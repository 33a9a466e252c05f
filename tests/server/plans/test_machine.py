"""What this machine has for TensorRT plans, by real libraries and processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from defensemble_repository.gpus import Gpu, find_gpus
from defensemble_server import PlanError
from defensemble_server.plans.machine import Machine, read_machine, tensorrt_version
from defensemble_server.runtime.backend_build import find_compiler

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "570.124.06")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compiles a folder with a real `libnvinfer.so.<major>` that exports TensorRT's version functions."""
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
    assert tensorrt_version(on_path(tmp_path)) == (None, "there is no libnvinfer.so on the library path")
    version, why = tensorrt_version(on_path(library(10, somethingElse=1)))
    assert version is None
    assert why == "libnvinfer.so.10 exports no getInferLibVersion: it is not TensorRT"
    (tmp_path / "libnvinfer.so.10").write_bytes(b"no library")
    version, why = tensorrt_version(on_path(tmp_path))
    assert version is None
    assert "libnvinfer.so.10 cannot be loaded" in why


def test_a_python_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be run to find the server's TensorRT"):
        tensorrt_version(python=[str(tmp_path / "none")])
    with pytest.raises(PlanError, match="status 3: no such image"):
        tensorrt_version(python=["sh", "-c", "echo no such image >&2; exit 3", "sh"])


def test_a_machine_is_its_tensorrt_and_its_gpus(library: Callable[..., Path], tmp_path: Path) -> None:
    libraries = library(10, getInferLibVersion=101303, getInferLibBuildVersion=9)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{H100.name}, 9.0, {H100.driver}'\n")
    program.chmod(0o755)
    environment = {**on_path(libraries), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    assert read_machine(environment) == Machine("10.13.3.9", (H100,))
    program.unlink()
    machine = read_machine({"PATH": str(tmp_path), "LD_LIBRARY_PATH": str(libraries)})
    assert machine == Machine("10.13.3.9", (), why_no_gpu=find_gpus({"PATH": str(tmp_path)})[1])
