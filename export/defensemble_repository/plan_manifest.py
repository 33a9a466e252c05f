"""What a TensorRT plan was built with and for, written beside it as ``model.plan.json``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import ManifestError, RepositoryError
from .filesystem.regular_files import LARGEST_TEXT, read_regular

SCHEMA = "defensemble.plan/1"
_VERSION = re.compile(r"\d+(\.\d+)+")
_DIGEST = re.compile("[0-9a-f]{64}")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
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


@dataclass(frozen=True)
class Manifest:
    """All that decides where a plan can run and what it answers; ``workspace_bytes`` None is all of the GPU's memory.

    ``tensorrt`` is a version such as "10.13.3.9", ``gpu`` and ``driver`` are what `nvidia-smi` says, ``date`` is ISO 8601 in UTC.
    """

    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str
    onnx_sha256: str
    plan_sha256: str
    profile: Profile
    precision: str
    version_compatible: bool
    hardware_compatible: bool
    builder_level: int
    workspace_bytes: int | None
    build_s: float
    date: str

    def __post_init__(self) -> None:
        for name in ("tensorrt", "compute_capability"):
            _check(name, getattr(self, name), _VERSION, "a version, such as 10.13.3.9")
        for name in ("onnx_sha256", "plan_sha256"):
            _check(name, getattr(self, name), _DIGEST, "64 hexadecimal digits")

    def to_bytes(self) -> bytes:
        """The JSON text of the file."""
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n").encode()


def manifest_from_bytes(content: bytes, where: str) -> Manifest:
    """Read back what ``Manifest.to_bytes`` wrote; ``where`` names it in errors.

    Raises:
        ManifestError: it is damaged, or of another schema.
    """
    mend = "build the plan again with --force"
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is damaged, it is no JSON: {error}; {mend}") from error
    schema = values.pop("schema", None) if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise ManifestError(f"{where} has the schema {schema!r}, expected {SCHEMA!r}; {mend}")
    expected = {field.name for field in fields(Manifest)}
    if set(values) != expected:
        missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
        raise ManifestError(f"{where} is damaged: it lacks {missing}, and has {unknown}, which are not known; {mend}")
    try:
        profile = Profile(**{name: tuple(shape) for name, shape in values.pop("profile").items()})
        for name, kinds in _KINDS.items():
            _check_kind(name, values[name], kinds)
        return Manifest(profile=profile, **values)
    except (RepositoryError, TypeError, AttributeError) as error:
        raise ManifestError(f"{where} is damaged: {error}; {mend}") from error


def read_manifest(path: Path) -> Manifest | None:
    """Read a ``model.plan.json``; None where there is none.

    Raises:
        ManifestError: it is damaged, or of another schema.
        OSError: it cannot be read.
    """
    try:
        content = read_regular(path, LARGEST_TEXT)
    except FileNotFoundError:
        return None
    return manifest_from_bytes(content, str(path))


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("tensorrt", "gpu", "compute_capability", "driver", "onnx_sha256", "plan_sha256", "precision", "date"), (str,)),
    **dict.fromkeys(("version_compatible", "hardware_compatible"), (bool,)),
    "builder_level": (int,),
    "workspace_bytes": (int, type(None)),
    "build_s": (int, float),
}


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{name} is {value!r}, expected {' or '.join(kind.__name__ for kind in kinds)}")


def _check(name: str, value: str, pattern: re.Pattern[str], expected: str) -> None:
    if not pattern.fullmatch(value):
        raise ManifestError(f"{name} of a plan's manifest must be {expected}, got {value!r}")
