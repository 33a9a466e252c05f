"""The options that `export`, `import-onnx` and `fuse` share, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Where networks are written, in which precision, and on which images they are verified and calibrated.

    `ensemble` is None for networks that join no ensemble. None stands for the default of `defensemble_export` in all other fields.
    """

    repository: Path
    ensemble: str | None = None
    average: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    max_batch_size: int | None = None
    replace: bool = False
    precision: str = "fp32"
    mask_aware: str = "auto"
    images_file: Path | None = None
    data_dir: Path | None = None
    calibration_file: Path | None = None
    calibration_count: int | None = None
    calibration_seed: int | None = None
    engine: bool = False
