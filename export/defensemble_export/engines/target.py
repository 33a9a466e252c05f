"""Find the TensorRT and the GPU that plans are built with and for, and check what they support."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from typing import Any

from defensemble_repository.gpus import HARDWARE_COMPATIBLE_FROM, find_gpus

from ..errors import EngineError

# The builder's calls are checked against the bindings of 10.13.3.9 and 11.4.0.106.
MIN_TENSORRT = (10, 13)
# TensorRT 10.5.0 removed the support of compute capability 7.0 (Volta), by its release notes. Every GPU of the support matrix from 7.5
# (Turing) on supports fp32, fp16 and int8: https://docs.nvidia.com/deeplearning/tensorrt, Support Matrix.
MIN_COMPUTE_CAPABILITY = (7, 5)
_HOW_TO_GET = (
    "build in NVIDIA's container, which contains it: docker compose --profile gpu run --rm engines (nvcr.io/nvidia/tensorrt:26.07-py3); "
    "or install it: make install GPU=1"
)


@dataclass(frozen=True)
class Target:
    """The version of TensorRT and, from `nvidia-smi`, the GPU's name, compute capability ("9.0") and driver.

    Example:
        >>> target = find_target()
        >>> target.tensorrt, target.gpu, target.compute_capability
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str


def load_tensorrt() -> Any:
    """Import TensorRT's Python package.

    Raises:
        EngineError: The package is missing, broken or too old. The message contains the container and the command that provide it.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise EngineError(f"TensorRT's Python package is not installed: {_HOW_TO_GET}") from error
    except (ImportError, OSError) as error:  # its libraries are missing
        raise EngineError(f"TensorRT's Python package is installed but cannot be loaded: {error}. Repair it, or {_HOW_TO_GET}") from error
    version = str(tensorrt.__version__)
    if version_numbers(version) < MIN_TENSORRT:
        raise EngineError(f"TensorRT {version} is installed, expected {'.'.join(map(str, MIN_TENSORRT))} or newer: {_HOW_TO_GET}")
    return tensorrt


def find_target() -> Target:
    """Return the TensorRT and the GPU of this machine, to which plans built here are bound.

    Raises:
        EngineError: TensorRT is missing (see `load_tensorrt`), there is no GPU, or there are GPUs of several kinds.

    Example:
        >>> find_target().gpu
        'NVIDIA H200'
    """
    version = str(load_tensorrt().__version__)
    gpus, reason = find_gpus()
    if not gpus:
        raise EngineError(
            f"this machine has no GPU: {reason}; use a machine with an NVIDIA GPU, or a container with access to one "
            f"({_HOW_TO_GET.partition(';')[0]})"
        )
    kinds = sorted({(gpu.name, gpu.compute_capability) for gpu in gpus})
    if len(kinds) > 1:
        listed = ", ".join(f"{name} (compute capability {capability})" for name, capability in kinds)
        raise EngineError(
            f"this machine has GPUs of several kinds ({listed}), and a plan is bound to one kind: choose a GPU with "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=N, where N is its number in nvidia-smi"
        )
    return Target(version, *astuple(gpus[0]))


def check_target(target: Target, precision: str, *, hardware_compatible: bool) -> None:
    """Check before a build, which takes minutes, that the GPU can run the plan.

    Args:
        target: The machine, from `find_target`.
        precision: The precision of the plan.
        hardware_compatible: Whether the plan is to run on other GPUs, too.

    Raises:
        EngineError: The compute capability is too low for TensorRT or for a hardware-compatible plan.
    """
    capability = version_numbers(target.compute_capability)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise EngineError(
            f"TensorRT {target.tensorrt} does not support {target.gpu} (in {precision} or any precision): its compute capability is "
            f"{target.compute_capability}, expected {_format_version(MIN_COMPUTE_CAPABILITY)} (Turing) or newer; "
            "serve with the profile gpu or cpu"
        )
    if hardware_compatible and capability < HARDWARE_COMPATIBLE_FROM:
        raise EngineError(
            f"a hardware-compatible plan needs a GPU of compute capability {_format_version(HARDWARE_COMPATIBLE_FROM)} (Ampere) or newer, "
            f"for the build, too; {target.gpu} has {target.compute_capability}: omit --hardware-compatible"
        )


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as "10.13.3.9"."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
