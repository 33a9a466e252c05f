"""The manifest of a TensorRT plan, `model.plan.json`: how, on what and for what the plan was built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec

from .errors import ManifestError
from .filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from .records import checked_schema, parse_json, record_from_values

SCHEMA = "defensemble.plan/1"
Shape = tuple[int, ...]
_Version = Annotated[str, msgspec.Meta(pattern=r"^\d+(\.\d+)+$")]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class OptimizationProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The optimization profile of a plan (TensorRT's term, not a serving profile).

    It states the smallest, the optimal and the largest shape (N, C, H, W) of the input `images`.

    Raises:
        ManifestError: A shape is not four sizes above 0, or the shapes differ in more than an ascending batch size.

    Example:
        OptimizationProfile(min=(1, 3, 32, 32), opt=(16, 3, 32, 32), max=(64, 3, 32, 32))
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        for name, shape in (("min", self.min), ("opt", self.opt), ("max", self.max)):
            if len(shape) != 4 or not all(type(size) is int and size > 0 for size in shape):
                raise ManifestError(f"shape {name} of the optimization profile is {list(shape)}; expected four sizes (N, C, H, W) above 0")
        if not self.min[1:] == self.opt[1:] == self.max[1:]:
            raise ManifestError(
                f"shapes of the optimization profile are {self.min}, {self.opt} and {self.max}; only the first size may differ"
            )
        if not self.min[0] <= self.opt[0] <= self.max[0]:
            raise ManifestError(
                f"batch sizes of the optimization profile are {self.min[0]}, {self.opt[0]} and {self.max[0]}; expected min <= opt <= max"
            )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that determines where a plan runs and what it computes.

    `tensorrt` is a version such as "10.13.3.9". `gpu` and `driver` are from `nvidia-smi`. `workspace_bytes` is None for all memory of the
    GPU. `build_s` is in seconds. `date` is in ISO 8601, in UTC.

    Example:
        manifest = read_manifest(Path("model_repository/keep0.3/1/model.plan.json"))
    """

    tensorrt: _Version
    gpu: str
    compute_capability: _Version
    driver: str
    onnx_sha256: _Digest
    plan_sha256: _Digest
    profile: OptimizationProfile
    precision: str
    version_compatible: bool
    hardware_compatible: bool
    builder_level: int
    workspace_bytes: int | None
    build_s: float
    date: str

    def to_bytes(self) -> bytes:
        """Return the JSON content of the file."""
        return (json.dumps({"schema": SCHEMA, **msgspec.to_builtins(self)}, indent=2) + "\n").encode()


def manifest_from_bytes(content: bytes, source: str) -> Manifest:
    """Parse the content of a manifest.

    Args:
        content: What `Manifest.to_bytes` returned.
        source: The name of the file, for error messages.

    Raises:
        ManifestError: The content is damaged, or has another schema.
    """
    try:
        return record_from_values(checked_schema(parse_json(content), SCHEMA), Manifest)
    except (ManifestError, ValueError) as error:
        raise ManifestError(
            f"{source} is damaged or has another schema: {str(error).rstrip('.')}. Build the plan again with --force."
        ) from error


def read_manifest(path: Path) -> Manifest | None:
    """Read a `model.plan.json`, or return None if it does not exist.

    Raises:
        ManifestError: The file is damaged, or has another schema.
        OSError: The file cannot be read.
    """
    try:
        content = read_regular(path, MAX_TEXT_BYTES)
    except FileNotFoundError:
        return None
    return manifest_from_bytes(content, str(path))
