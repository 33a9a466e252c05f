"""What the machine of a server has for TensorRT plans: which TensorRT the loader finds, and which GPUs."""

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
    """What a server runs on: its TensorRT ("10.13.3.9", None where there is none) and its GPUs, and why where one of these is missing."""

    tensorrt: str | None
    gpus: tuple[Gpu, ...]
    why_no_tensorrt: str = ""
    why_no_gpu: str = ""


def read_machine(environment: Mapping[str, str] | None = None, *, python: Sequence[str] = (sys.executable, "-S")) -> Machine:
    """Find out what a server that is started with ``environment`` (None: this process's) will find.

    TensorRT is looked for by the dynamic loader, so on LD_LIBRARY_PATH and in ldconfig's list, in a process of its own. ``python`` runs
    Python where the server will run: for a container, the words of `docker run ... python3`. The GPUs are those that `nvidia-smi` lists
    here, of them those that CUDA_VISIBLE_DEVICES names where it is set.

    Raises:
        PlanError: ``python`` cannot be run.
    """
    environment = dict(os.environ if environment is None else environment)
    gpus, why_no_gpu = find_gpus(environment)
    tensorrt, why = tensorrt_version(environment, python=python)
    return Machine(tensorrt, gpus, why, why_no_gpu)


def tensorrt_version(
    environment: Mapping[str, str] | None = None, *, python: Sequence[str] = (sys.executable, "-S")
) -> tuple[str | None, str]:
    """The TensorRT that a server would load (see ``read_machine``), such as "10.13.3.9"; None and why where there is none.

    Raises:
        PlanError: ``python`` cannot be run.
    """
    # Not in this process: its LD_LIBRARY_PATH is not the server's, and what is loaded stays loaded.
    source = Path(__file__).with_name("libnvinfer_version.py").read_text()
    cannot = f"`{shlex.join(python)}` cannot be run to find the server's TensorRT"
    try:
        done = subprocess.run([*python, "-c", source], env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlanError(f"{cannot}: {error}") from error
    if done.returncode != 0:
        raise PlanError(f"{cannot}: status {done.returncode}: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout.splitlines()[-1])  # a container may greet first
    version, why = answer["version"], answer.get("why", "")
    return version, why if version is not None or why else "there is no libnvinfer.so on the library path"
