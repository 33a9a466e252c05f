"""Find the TensorRT version and the GPUs of the server's machine."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensemble_repository.gpus import Gpu, find_gpus

from ..errors import PlanError

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Machine:
    """TensorRT version ("10.13.3.9", None if there is none) and GPUs of a server's machine, and why one of them is missing.

    Example:
        >>> machine = read_machine()
        >>> machine.tensorrt or machine.why_no_tensorrt
    """

    tensorrt: str | None
    gpus: tuple[Gpu, ...]
    why_no_tensorrt: str = ""
    why_no_gpu: str = ""


def read_machine(environment: Mapping[str, str] | None = None, *, python: Sequence[str] = (sys.executable, "-S")) -> Machine:
    """Find the TensorRT and the GPUs that a server would use.

    A separate process asks the dynamic loader for TensorRT (LD_LIBRARY_PATH and ldconfig's list). The GPUs are those that `nvidia-smi`
    lists here, restricted to CUDA_VISIBLE_DEVICES if that is set.

    Args:
        environment: The server's environment; None: this process's.
        python: Command that runs Python where the server runs; for a container `docker run ... python3`.

    Raises:
        PlanError: `python` cannot be run.
    """
    environment = dict(os.environ if environment is None else environment)
    gpus, why_no_gpu = find_gpus(environment)
    tensorrt, why = tensorrt_version(environment, python=python)
    return Machine(tensorrt, gpus, why, why_no_gpu)


def tensorrt_version(
    environment: Mapping[str, str] | None = None, *, python: Sequence[str] = (sys.executable, "-S")
) -> tuple[str | None, str]:
    """Return the TensorRT version that a server would load (see `read_machine`), such as "10.13.3.9"; or None, and why.

    Raises:
        PlanError: `python` cannot be run.
    """
    # Not in this process: its LD_LIBRARY_PATH is not the server's, and a library cannot be unloaded.
    source = Path(__file__).with_name("libnvinfer_version.py").read_text()
    cannot = f"`{shlex.join(python)}` cannot be run to find the server's TensorRT"
    try:
        done = subprocess.run([*python, "-c", source], env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlanError(f"{cannot}: {error}") from error
    if done.returncode != 0:
        raise PlanError(f"{cannot}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout.splitlines()[-1])  # a container may print a greeting first
    version, why = answer["version"], answer.get("why", "")
    return version, why if version is not None or why else "there is no libnvinfer.so on the library path"
