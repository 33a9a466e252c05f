"""The GPUs of this machine, with real processes that act as `nvidia-smi`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from defensemble_repository.gpus import Gpu, find_gpus
from tests.support.facts import assert_facts

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "570.124.06")


def nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1"}


def test_find_gpus_returns_those_of_nvidia_smi(tmp_path: Path) -> None:
    arguments = tmp_path / "arguments"
    environment = nvidia_smi(tmp_path / "bin", f"echo \"$@\" > {arguments}\necho '{H100.name}, 9.0, {H100.driver}'\necho 'A, B, 8.6, 1.2'")
    assert find_gpus(environment) == ((H100, Gpu("A, B", "8.6", "1.2")), "")
    assert arguments.read_text() == "--query-gpu=name,compute_cap,driver_version --format=csv,noheader --id=0,1\n"
    del environment["CUDA_VISIBLE_DEVICES"]
    find_gpus(environment)
    assert arguments.read_text() == "--query-gpu=name,compute_cap,driver_version --format=csv,noheader\n"


@pytest.mark.parametrize(
    ("script", "facts"),
    [
        ('echo "couldn\'t communicate with the NVIDIA driver" >&2; exit 9', "status 9: couldn't communicate with the NVIDIA driver"),
        ("echo No devices were found; exit 6", "status 6: No devices were found"),
        ("true", "nvidia-smi lists none"),
        ("echo strange", "'strange'"),
    ],
)
def test_find_gpus_returns_the_reason_if_there_are_none(tmp_path: Path, script: str, facts: str) -> None:
    gpus, reason = find_gpus(nvidia_smi(tmp_path / "bin", script))
    assert gpus == ()
    assert_facts(reason, facts)


def test_a_missing_driver_and_a_hidden_gpu_have_reasons(tmp_path: Path) -> None:
    assert find_gpus({"PATH": str(tmp_path)}) == ((), "there is no nvidia-smi on PATH, so no NVIDIA driver")
    hidden = {**nvidia_smi(tmp_path / "bin", "echo 'X, 9.0, 1'"), "CUDA_VISIBLE_DEVICES": ""}
    assert find_gpus(hidden) == ((), "CUDA_VISIBLE_DEVICES is '': unset it")
