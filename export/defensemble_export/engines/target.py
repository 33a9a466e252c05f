"""The machine that TensorRT plans are built on, and for: which TensorRT, which GPU, and whether they can do what is asked of them."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from typing import Any

from defensemble_repository.gpus import HARDWARE_COMPATIBLE_FROM, find_gpus

from ..errors import EngineError

# The versions whose bindings the builder's calls are checked against are 10.13.3.9 and 11.4.0.106.
MIN_TENSORRT = (10, 13)
# TensorRT 10.5.0's release notes: support of compute capability 7.0 (Volta) was removed. Every GPU of the support matrix from 7.5 (Turing)
# on computes in fp32, fp16 and int8: https://docs.nvidia.com/deeplearning/tensorrt, Support Matrix.
MIN_COMPUTE_CAPABILITY = (7, 5)
_GET_IT = (
    "build in NVIDIA's container, which has it: docker compose --profile gpu run --rm engines (nvcr.io/nvidia/tensorrt:26.07-py3); "
    "or install it: make install GPU=1"
)


@dataclass(frozen=True)
class Target:
    """Version of TensorRT, and of the GPU what `nvidia-smi` says: its name, compute capability ("9.0") and driver."""

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str


def load_tensorrt() -> Any:
    """Import TensorRT's Python package; EngineError, with the command and the container that have it, where that fails or it is too old."""
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise EngineError(f"TensorRT's Python package is not installed: {_GET_IT}") from error
    except (ImportError, OSError) as error:  # its libraries are missing
        raise EngineError(f"TensorRT's Python package is installed, but cannot be loaded: {error}. Mend it, or {_GET_IT}") from error
    version = str(tensorrt.__version__)
    if numbers(version) < MIN_TENSORRT:
        raise EngineError(f"TensorRT {version} is installed, expected {'.'.join(map(str, MIN_TENSORRT))} or newer: {_GET_IT}")
    return tensorrt


def find_target() -> Target:
    """What plans that are built here are bound to.

    Raises:
        EngineError: TensorRT is missing (`load_tensorrt`), there is no GPU, or there are several kinds.
    """
    version = str(load_tensorrt().__version__)
    gpus, why = find_gpus()
    if not gpus:
        raise EngineError(
            f"there is no GPU here: {why}; run this on a machine with an NVIDIA GPU, or in a container that was given one "
            f"({_GET_IT.partition(';')[0]})"
        )
    kinds = sorted({(gpu.name, gpu.compute_capability) for gpu in gpus})
    if len(kinds) > 1:
        listed = ", ".join(f"{name} (compute capability {capability})" for name, capability in kinds)
        raise EngineError(
            f"this machine has GPUs of several kinds ({listed}), and a plan is bound to one: choose it with CUDA_DEVICE_ORDER=PCI_BUS_ID "
            "CUDA_VISIBLE_DEVICES=N, N as nvidia-smi counts"
        )
    return Target(version, *astuple(gpus[0]))


def check_target(target: Target, precision: str, *, hardware_compatible: bool) -> None:
    """Refuse before a build, which takes minutes, what the GPU cannot run.

    Raises:
        EngineError: its compute capability is too low for TensorRT or for a plan that is hardware compatible.
    """
    capability = numbers(target.compute_capability)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise EngineError(
            f"TensorRT {target.tensorrt} cannot run {precision}, nor anything else, on {target.gpu}: its compute capability is "
            f"{target.compute_capability}, expected {_dotted(MIN_COMPUTE_CAPABILITY)} (Turing) or newer; serve with the profile gpu or cpu"
        )
    if hardware_compatible and capability < HARDWARE_COMPATIBLE_FROM:
        raise EngineError(
            f"a plan that is hardware compatible is for GPUs of compute capability {_dotted(HARDWARE_COMPATIBLE_FROM)} (Ampere) or newer, "
            f"and must be built on one; {target.gpu} has {target.compute_capability}: leave out --hardware-compatible"
        )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as "10.13.3.9"."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
