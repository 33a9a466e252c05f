"""Find the NVIDIA GPUs of this machine with `nvidia-smi`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

# HardwareCompatibilityLevel.AMPERE_PLUS: such plans run and are built on GPUs of compute capability 8.0 or newer.
HARDWARE_COMPATIBLE_FROM = (8, 0)
_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it: `compute_capability` such as "9.0", `driver` version such as "570.124.06"."""

    name: str
    compute_capability: str
    driver: str


def find_gpus(environment: Mapping[str, str] | None = None) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that a process can use, and the reason if there are none.

    These are the GPUs that `nvidia-smi` lists, limited to those in CUDA_VISIBLE_DEVICES if it is set.

    Args:
        environment: The environment of the process, or None for that of this process.

    Example:
        gpus, reason = find_gpus()
    """
    environment = os.environ if environment is None else environment
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return (), "there is no nvidia-smi on PATH, so no NVIDIA driver"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return (), f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it"
    command = [program, *_QUERY, *([f"--id={visible}"] if visible is not None else [])]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi cannot be run: {error}"
    if done.returncode != 0:
        return (), f"nvidia-smi ended with status {done.returncode}: {(done.stderr.strip() or done.stdout.strip())[-300:]}"
    gpus = []
    for line in done.stdout.splitlines():
        columns = [column.strip() for column in line.rsplit(",", 2)]
        if len(columns) != 3 or not re.fullmatch(r"\d+\.\d+", columns[1]):
            return (), f"nvidia-smi printed {line[:100]!r}; expected a name, a compute capability and a driver version"
        gpus.append(Gpu(*columns))
    return tuple(gpus), "" if gpus else "nvidia-smi lists none"
