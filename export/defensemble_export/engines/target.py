"""The machine that TensorRT plans are built on, and for: which TensorRT, which GPU, and whether they can do what is asked of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from ..errors import EngineError

# The versions whose bindings the builder's calls are checked against are 10.13.3.9 and 11.4.0.106.
LEAST_TENSORRT = (10, 13)
# TensorRT 10.5.0's release notes: support of compute capability 7.0 (Volta) was removed. Every GPU of the support matrix from 7.5 (Turing)
# on computes in fp32, fp16 and int8: https://docs.nvidia.com/deeplearning/tensorrt, Support Matrix.
LEAST_CAPABILITY = (7, 5)
# HardwareCompatibilityLevel.AMPERE_PLUS: plans for and from compute capability 8.0 (Ampere) on.
LEAST_HARDWARE_COMPATIBLE = (8, 0)
_GET_IT = (
    "build in NVIDIA's container, which has it: docker compose --profile gpu run --rm engines (nvcr.io/nvidia/tensorrt:26.07-py3); "
    "or install it: make install GPU=1"
)
_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Target:
    """Version of TensorRT, and of the GPU what `nvidia-smi` says: its name, compute capability ("9.0") and driver."""

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str


def load_tensorrt() -> Any:
    """Import TensorRT's Python package.

    Raises:
        EngineError: it is missing, cannot be loaded, or is too old; names the command and the container that have it.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise EngineError(f"TensorRT's Python package is not installed: {_GET_IT}") from error
    except (ImportError, OSError) as error:  # its libraries are missing
        raise EngineError(f"TensorRT's Python package is installed, but cannot be loaded: {error}. Mend it, or {_GET_IT}") from error
    version = str(tensorrt.__version__)
    if numbers(version) < LEAST_TENSORRT:
        raise EngineError(f"TensorRT {version} is installed, expected {'.'.join(map(str, LEAST_TENSORRT))} or newer: {_GET_IT}")
    return tensorrt


def find_target() -> Target:
    """What plans that are built here are bound to.

    The GPUs are those that `nvidia-smi` lists, of them those that CUDA_VISIBLE_DEVICES names where it is set.

    Raises:
        EngineError: TensorRT is missing (``load_tensorrt``), there is no GPU, or there are several kinds.
    """
    version = str(load_tensorrt().__version__)
    gpus = _gpus()
    kinds = sorted({(name, capability) for name, capability, _ in gpus})
    if len(kinds) > 1:
        listed = ", ".join(f"{name} (compute capability {capability})" for name, capability in kinds)
        raise EngineError(
            f"this machine has GPUs of several kinds ({listed}), and a plan is bound to one: choose it with CUDA_DEVICE_ORDER=PCI_BUS_ID "
            "CUDA_VISIBLE_DEVICES=N, N as nvidia-smi counts"
        )
    return Target(version, *gpus[0])


def check_target(target: Target, precision: str, *, hardware_compatible: bool) -> None:
    """Refuse before a build, which takes minutes, what the GPU cannot run.

    Raises:
        EngineError: its compute capability is too low for TensorRT or for a plan that is hardware compatible.
    """
    capability = numbers(target.compute_capability)
    if capability < LEAST_CAPABILITY:
        raise EngineError(
            f"TensorRT {target.tensorrt} cannot run {precision}, nor anything else, on {target.gpu}: its compute capability is "
            f"{target.compute_capability}, needed is {_dotted(LEAST_CAPABILITY)} (Turing) or newer; serve it with the profile gpu or cpu"
        )
    if hardware_compatible and capability < LEAST_HARDWARE_COMPATIBLE:
        raise EngineError(
            f"a plan that is hardware compatible is for GPUs of compute capability {_dotted(LEAST_HARDWARE_COMPATIBLE)} (Ampere) or newer, "
            f"and must be built on one; {target.gpu} has {target.compute_capability}: leave out --hardware-compatible"
        )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as "10.13.3.9"."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _gpus() -> list[tuple[str, str, str]]:
    mend = f"run this on a machine with an NVIDIA GPU, or in a container that was given one ({_GET_IT.partition(';')[0]})"
    program = shutil.which("nvidia-smi")
    if program is None:
        raise EngineError(f"there is no GPU here: no nvidia-smi is on PATH, so there is no NVIDIA driver; {mend}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        raise EngineError(f"there is no GPU to build on: CUDA_VISIBLE_DEVICES is {visible!r}; unset it")
    command = [program, *_QUERY, *([f"--id={visible}"] if visible is not None else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"nvidia-smi cannot be run: {error}; {mend}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise EngineError(f"there is no GPU here: nvidia-smi ended with status {done.returncode}: {said}; {mend}")
    gpus = []
    for line in done.stdout.splitlines():
        columns = [column.strip() for column in line.rsplit(",", 2)]
        if len(columns) != 3 or not re.fullmatch(r"\d+\.\d+", columns[1]):
            raise EngineError(f"nvidia-smi said {line[:100]!r}, expected a name, a compute capability and a driver version")
        gpus.append((columns[0], columns[1], columns[2]))
    if not gpus:
        raise EngineError(f"there is no GPU here: nvidia-smi lists none; {mend}")
    return gpus
