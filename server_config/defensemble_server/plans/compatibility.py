"""Check whether TensorRT plans are compatible with the server's machine before Triton loads them.

A plan only runs with the exact TensorRT version and the kind of GPU that it was built with, and Triton notices only while loading. The
manifest that `defensemble build-engine` writes next to each plan records both.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from defensemble_repository.errors import ManifestError
from defensemble_repository.gpus import HARDWARE_COMPATIBLE_FROM, Gpu
from defensemble_repository.names import CONFIG_FILE, MANIFEST_FILE, MODEL_FILE, PLAN_BACKEND, PLAN_FILE
from defensemble_repository.plan_manifest import Manifest, read_manifest
from defensemble_repository.view import file_digest

from ..repository import Repository
from .machine import Machine

# Major versions (built with, runs on) across which a version-compatible plan runs: support matrix of TensorRT 11.4.1.
_COMPATIBLE_MAJORS = ((8, 10), (10, 11))


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
    """Return why a plan must not be served on `machine`, and how to fix it; None if it can be served.

    Args:
        manifest: The plan's manifest, or None if there is none.
        machine: TensorRT and GPUs of the server.
        onnx_sha256: Digest of the ONNX file next to the plan, or None if there is none.
        plan_sha256: Digest of the plan.
        max_batch_size: The configuration's.
        image_shape: The configuration's, (C, H, W); a negative size matches any, an empty shape is not compared.
        rebuild: The command that builds the plan again.
    """
    fix = f"rebuild with `{rebuild}`"
    if manifest is None:
        return f"the plan has no manifest ({MANIFEST_FILE}), so its origin is unknown, and a plan is code: {fix}"
    if plan_sha256 != manifest.plan_sha256:
        return (
            f"the plan has SHA-256 {plan_sha256[:16]}..., but {manifest.plan_sha256[:16]}... in its manifest: it was changed or "
            f"damaged after it was built; {fix}"
        )
    if onnx_sha256 is not None and onnx_sha256 != manifest.onnx_sha256:
        return (
            f"the plan was built from another {MODEL_FILE} (SHA-256 {manifest.onnx_sha256[:16]}...) than the one next to it "
            f"({onnx_sha256[:16]}...): {fix}"
        )
    shapes = (manifest.profile.min, manifest.profile.opt, manifest.profile.max)
    if image_shape and not all(len(image_shape) == 3 and all(map(_same_size, image_shape, shape[1:])) for shape in shapes):
        sizes = " to ".join(dict.fromkeys(str(shape[1:]) for shape in shapes))
        return f"{CONFIG_FILE} declares images of {tuple(image_shape)}, but the plan takes {sizes}: {fix}, or export the model again"
    if max_batch_size > 0 and manifest.profile.min[0] > 1:
        return f"the plan takes at least {manifest.profile.min[0]} images, but a request may have 1: {fix}"
    if max_batch_size > manifest.profile.max[0]:
        return (
            f"max_batch_size is {max_batch_size}, but the plan takes at most {manifest.profile.max[0]} images: {fix}, or lower "
            f"max_batch_size to {manifest.profile.max[0]}"
        )
    built = f"the plan was built with TensorRT {manifest.tensorrt} on {manifest.gpu} (compute capability {manifest.compute_capability})"
    if machine.tensorrt is None:
        return f"{built}, but this server has no TensorRT ({machine.why_no_tensorrt}): use NVIDIA's container, or the profile gpu or cpu"
    if not _is_version_compatible(manifest, machine.tensorrt):
        kind = ", version compatible" if manifest.version_compatible else ""
        return f"{built}{kind}, but this server has TensorRT {machine.tensorrt}: {fix}"
    if not machine.gpus:
        return (
            f"{built}, but this server has no GPU ({machine.why_no_gpu}): start the server on a machine with a GPU, or with the profile cpu"
        )
    for gpu in machine.gpus:
        if not _is_gpu_compatible(manifest, gpu):
            kind = ", hardware compatible with compute capability 8.0 and later" if manifest.hardware_compatible else ""
            others = "; or hide the other GPUs from the server (CUDA_VISIBLE_DEVICES)" if len(machine.gpus) > 1 else ""
            return f"{built}{kind}, but this server has {gpu.name} (compute capability {gpu.compute_capability}): {fix}{others}"
    return None


def problem_of_version(folder: Path, version: int, machine: Machine, *, max_batch_size: int, image_shape: Sequence[int] = ()) -> str | None:
    """Return why `<folder>/<version>/model.plan` must not be served on `machine`; None if it can be served.

    Args:
        folder: Folder of the model.
        version: The version.
        machine: TensorRT and GPUs of the server.
        max_batch_size: See `problem_of_plan`.
        image_shape: See `problem_of_plan`.

    Raises:
        OSError: A file cannot be read.
    """
    place = folder / str(version)
    rebuild = f"defensemble build-engine {shlex.quote(folder.name)} --repository {shlex.quote(str(folder.parent))} --version {version}"
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


def has_version_compatible_plan(content: Repository) -> bool:
    """Return whether a served plan is version compatible: it contains a runtime that Triton's backend only runs if configured to.

    Raises:
        ManifestError, OSError: A manifest cannot be read.
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


def _is_version_compatible(manifest: Manifest, installed: str) -> bool:
    built, running = _numbers(manifest.tensorrt), _numbers(installed)
    known = min(len(built), len(running))  # old libraries have no build number
    if built[:known] == running[:known]:
        return True
    if not manifest.version_compatible:
        return False
    return (built[0] == running[0] and built[:known] < running[:known]) or (built[0], running[0]) in _COMPATIBLE_MAJORS


def _is_gpu_compatible(manifest: Manifest, gpu: Gpu) -> bool:
    if (gpu.name, gpu.compute_capability) == (manifest.gpu, manifest.compute_capability):
        return True
    return manifest.hardware_compatible and _numbers(gpu.compute_capability) >= HARDWARE_COMPATIBLE_FROM


def _numbers(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(\.\d+)+", version):
        raise ValueError(f"{version!r} is not a version such as 10.13.3.9")
    return tuple(int(part) for part in version.split("."))
