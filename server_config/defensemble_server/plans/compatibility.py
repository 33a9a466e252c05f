"""TensorRT plans: what one was built with and for, what this machine has, and whether they fit, before a server is started with it.

A plan is bound to the exact version of TensorRT and to the kind of GPU that it was built on, and Triton finds out only while it loads. The
manifest that `defensemble build-engine` writes beside each plan says both.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensemble_repository.errors import ManifestError
from defensemble_repository.names import CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, PLAN_BACKEND, PLAN_FILE
from defensemble_repository.plan_manifest import Manifest, read_manifest
from defensemble_repository.view import file_digest

from ..errors import PlanError
from ..repository import Repository

# Compute capability from which on a plan that is hardware compatible runs (HardwareCompatibilityLevel.AMPERE_PLUS).
_HARDWARE_COMPATIBLE_FROM = (8, 0)
# Across major versions a version-compatible plan runs in these pairs alone, (built with, runs on): the support matrix of TensorRT 11.4.1.
_MAJORS_THAT_FOLLOW = ((8, 10), (10, 11))
_QUERY = ("--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver names it: ``compute_capability`` such as "9.0", ``driver`` such as "570.124.06"."""

    name: str
    compute_capability: str
    driver: str


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
    gpus, why_no_gpu = _gpus(environment)
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


def problem_of_plan(
    manifest: Manifest | None,
    machine: Machine,
    *,
    onnx_sha256: str | None,
    plan_sha256: str,
    max_batch_size: int,
    image_shape: Sequence[int] = (),
    rebuild: str = "defensemble build-engine",
) -> str | None:
    """Why a plan must not be served on ``machine``, with the command ``rebuild`` that mends it; None where it can be.

    ``onnx_sha256`` is that of the ONNX file beside the plan, None where there is none; ``max_batch_size`` is what the configuration
    says, and so is ``image_shape``: (C, H, W), where one below 0 is any size; empty: not compared.
    """
    mend = f"rebuild with `{rebuild}`"
    if manifest is None:
        return f"the plan has no manifest ({MANIFEST_FILE}), so what it was built with is not known, and a plan is code: {mend}"
    if plan_sha256 != manifest.plan_sha256:
        return (
            f"the plan has SHA-256 {plan_sha256[:16]}..., but {manifest.plan_sha256[:16]}... in its manifest: it was changed or "
            f"damaged after it was built; {mend}"
        )
    if onnx_sha256 is not None and onnx_sha256 != manifest.onnx_sha256:
        return (
            f"the plan was built from another {MODEL_FILE} (SHA-256 {manifest.onnx_sha256[:16]}...) than the one beside it "
            f"({onnx_sha256[:16]}...): {mend}"
        )
    shapes = (manifest.profile.min, manifest.profile.opt, manifest.profile.max)
    if image_shape and not all(len(image_shape) == 3 and all(map(_same_size, image_shape, shape[1:])) for shape in shapes):
        sizes = " to ".join(dict.fromkeys(str(shape[1:]) for shape in shapes))
        return f"{CONFIG_FILE} says images of {tuple(image_shape)}, the plan takes {sizes}: {mend}, or export the model again"
    if max_batch_size > 0 and manifest.profile.min[0] > 1:
        return f"the plan takes no fewer than {manifest.profile.min[0]} images, and a request may have 1: {mend}"
    if max_batch_size > manifest.profile.max[0]:
        return (
            f"max_batch_size is {max_batch_size}, the plan takes at most {manifest.profile.max[0]} images: {mend}, or lower "
            f"max_batch_size to {manifest.profile.max[0]}"
        )
    built = f"built with TensorRT {manifest.tensorrt} on {manifest.gpu} (compute capability {manifest.compute_capability})"
    if machine.tensorrt is None:
        return f"{built}, this server has no TensorRT ({machine.why_no_tensorrt}): use NVIDIA's container, or the profile gpu or cpu"
    if not _version_fits(manifest, machine.tensorrt):
        kind = ", version compatible" if manifest.version_compatible else ""
        return f"{built}{kind}, this server has TensorRT {machine.tensorrt}: {mend}"
    if not machine.gpus:
        return f"{built}, this server has no GPU ({machine.why_no_gpu}): start it where there is one, or with the profile cpu"
    for gpu in machine.gpus:
        if not _gpu_fits(manifest, gpu):
            kind = ", hardware compatible from compute capability 8.0 on" if manifest.hardware_compatible else ""
            others = "; or let the server see no other kind of GPU (CUDA_VISIBLE_DEVICES)" if len(machine.gpus) > 1 else ""
            return f"{built}{kind}, this server has {gpu.name} (compute capability {gpu.compute_capability}): {mend}{others}"
    return None


def problem_of_version(folder: Path, version: int, machine: Machine, *, max_batch_size: int, image_shape: Sequence[int] = ()) -> str | None:
    """Why ``<folder>/<version>/model.plan`` of a model must not be served on ``machine``; None where it can be.

    ``max_batch_size`` and ``image_shape`` are as in ``problem_of_plan``.

    Raises:
        OSError: a file cannot be read.
    """
    place = folder / str(version)
    rebuild = f"defensemble build-engine {shlex.quote(str(folder.parent))} --model {shlex.quote(folder.name)} --version {version}"
    plan, onnx = place / PLAN_FILE, place / MODEL_FILE
    if not plan.exists():
        return f"version {version}: {plan} is missing: build it with `{rebuild}`"
    try:
        manifest = read_manifest(place / MANIFEST_FILE)
    except ManifestError as error:
        return f"version {version}: {error}, with `{rebuild}`"
    problem = problem_of_plan(
        manifest,
        machine,
        onnx_sha256=file_digest(onnx) if onnx.exists() else None,
        plan_sha256=file_digest(plan),
        max_batch_size=max_batch_size,
        image_shape=image_shape,
        rebuild=rebuild,
    )
    return None if problem is None else f"version {version}: {problem}"


def hold_code(content: Repository) -> bool:
    """Whether a served plan is version compatible: it carries a runtime of its own, which Triton's backend runs only where it is told to.

    Raises:
        ManifestError, OSError: a manifest cannot be read.
    """
    places = [
        content.path / model.name / str(version)
        for model in content.models.values()
        if model.backend == PLAN_BACKEND
        for version in model.served_versions
    ]
    manifests = [read_manifest(place / MANIFEST_FILE) for place in places]
    return any(manifest is not None and manifest.version_compatible for manifest in manifests)


def _same_size(stated: int, size: int) -> bool:
    return stated in (-1, size)


def _version_fits(manifest: Manifest, here: str) -> bool:
    built, found = _numbers(manifest.tensorrt), _numbers(here)
    known = min(len(built), len(found))  # an old library does not say its build number
    if built[:known] == found[:known]:
        return True
    if not manifest.version_compatible:
        return False
    return (built[0] == found[0] and built[:known] < found[:known]) or (built[0], found[0]) in _MAJORS_THAT_FOLLOW


def _gpu_fits(manifest: Manifest, gpu: Gpu) -> bool:
    if (gpu.name, gpu.compute_capability) == (manifest.gpu, manifest.compute_capability):
        return True
    return manifest.hardware_compatible and _numbers(gpu.compute_capability) >= _HARDWARE_COMPATIBLE_FROM


def _gpus(environment: Mapping[str, str]) -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that the driver lists, or none and why."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return (), "there is no nvidia-smi on PATH, so no NVIDIA driver"
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return (), f"CUDA_VISIBLE_DEVICES is {visible!r}"
    command = [program, *_QUERY, *([f"--id={visible}"] if visible is not None else [])]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi cannot be run: {error}"
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        return (), f"nvidia-smi ended with status {done.returncode}: {said}"
    gpus = []
    for line in done.stdout.splitlines():
        columns = [column.strip() for column in line.rsplit(",", 2)]
        if len(columns) != 3 or not re.fullmatch(r"\d+\.\d+", columns[1]):
            return (), f"nvidia-smi said {line[:100]!r}, expected a name, a compute capability and a driver version"
        gpus.append(Gpu(*columns))
    return tuple(gpus), "" if gpus else "nvidia-smi lists none"


def _numbers(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(\.\d+)+", version):
        raise ValueError(f"{version!r} is no version, such as 10.13.3.9")
    return tuple(int(part) for part in version.split("."))
