"""What a TensorRT plan was built with and for, written beside it as ``model.plan.json``."""

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


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shapes (N, C, H, W) of the input ``images`` that a plan takes: the smallest, the one that it is fastest at, the largest."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        for name, shape in (("min", self.min), ("opt", self.opt), ("max", self.max)):
            if len(shape) != 4 or not all(type(size) is int and size > 0 for size in shape):
                raise ManifestError(f"the profile's {name} must be four sizes (N, C, H, W) above 0, got {list(shape)}")
        if not self.min[1:] == self.opt[1:] == self.max[1:]:
            raise ManifestError(f"the profile's shapes must differ in their first size alone, got {self.min}, {self.opt} and {self.max}")
        if not self.min[0] <= self.opt[0] <= self.max[0]:
            raise ManifestError(
                f"the profile's batches must be in order, min <= opt <= max, got {self.min[0]}, {self.opt[0]} and {self.max[0]}"
            )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that decides where a plan can run and what it answers; ``workspace_bytes`` None is all of the GPU's memory.

    ``tensorrt`` is a version such as "10.13.3.9", ``gpu`` and ``driver`` are what `nvidia-smi` says, ``date`` is ISO 8601 in UTC.
    """

    tensorrt: _Version
    gpu: str
    compute_capability: _Version
    driver: str
    onnx_sha256: _Digest
    plan_sha256: _Digest
    profile: Profile
    precision: str
    version_compatible: bool
    hardware_compatible: bool
    builder_level: int
    workspace_bytes: int | None
    build_s: float
    date: str

    def to_bytes(self) -> bytes:
        """The JSON text of the file."""
        return (json.dumps({"schema": SCHEMA, **msgspec.to_builtins(self)}, indent=2) + "\n").encode()


def manifest_from_bytes(content: bytes, where: str) -> Manifest:
    """Read back what ``Manifest.to_bytes`` wrote; ``where`` names it in the ManifestError of a damaged one or another schema."""
    try:
        return record_from_values(checked_schema(parse_json(content), SCHEMA), Manifest)
    except (ManifestError, ValueError) as error:
        raise ManifestError(f"{where} is damaged, or of another version: {error}; build the plan again with --force") from error


def read_manifest(path: Path) -> Manifest | None:
    """Read a ``model.plan.json``; None where there is none.

    Raises:
        ManifestError: it is damaged, or of another schema.
        OSError: it cannot be read.
    """
    try:
        content = read_regular(path, MAX_TEXT_BYTES)
    except FileNotFoundError:
        return None
    return manifest_from_bytes(content, str(path))
