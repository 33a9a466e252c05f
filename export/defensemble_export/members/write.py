"""Write a float32 network as the ONNX file that is served: convert it to its precision, verify it and write its report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from defensemble_repository.filesystem.atomic_write import os_errors_about, rename_durably, temporary_path
from defensemble_repository.names import MODEL_FILE, REPORT_FILE
from defensemble_repository.onnx_metadata import PRECISION

from ..errors import ExportError
from ..graphs.fp16 import fp16_from_onnx
from ..graphs.int8 import int8_from_onnx
from ..graphs.precision import computed_precision, computes_in_float16
from ..graphs.tracing import check_masks
from ..verification.images import ImagePool, RealImages
from ..verification.network import LogitsFunction, verify_onnx
from ..verification.tolerances import TOLERANCES, checked_precision, lowest_precision
from .calibration import DEFAULT_COUNT, DEFAULT_SEED, Calibration, calibration_images
from .mask_aware import MASK_AWARE_MODES, choose_form, verify_form
from .report import report_from_export


@dataclass(frozen=True, eq=False)
class ExportOptions:
    """The precision of an export, its calibration for int8, and whether the operator for masked neurons is used.

    Args:
        precision: "fp32", "fp16" or "int8".
        calibration_images: Float32 (N,C,H,W) in [0, 1]. None: training images of the checkpoint's dataset.
        calibration_count: Number of these images to calibrate on, at least 2.
        calibration_seed: Seed of their selection, 0 or more.
        mask_aware: "auto" writes an fp32 network with the operator that skips masked neurons where this is expected to be faster, "on"
            wherever it is possible, and "off" never.

    Raises:
        ExportError: The precision or `mask_aware` is unknown, they contradict each other, or the count or seed is out of range.

    Example:
        >>> export_checkpoints([Path("vgg19.safetensors")], Path("model_repository"), options=ExportOptions("int8"))
    """

    precision: str = "fp32"
    calibration_images: np.ndarray[Any, Any] | None = None
    calibration_count: int = DEFAULT_COUNT
    calibration_seed: int = DEFAULT_SEED
    mask_aware: str = "auto"

    def __post_init__(self) -> None:
        checked_precision(self.precision)
        if self.mask_aware not in MASK_AWARE_MODES:
            raise ExportError(f"mask_aware must be one of {', '.join(MASK_AWARE_MODES)}, got {self.mask_aware!r}")
        if self.mask_aware == "on" and self.precision != "fp32":
            raise ExportError(f"mask_aware 'on' needs the precision fp32, got {self.precision}: omit one of them")
        Calibration(self.calibration_count, self.calibration_seed)


@dataclass(frozen=True, eq=False)
class Network:
    """A network to export: its float32 graph with metadata, and the reference that the file is compared with.

    `reference_name` names the reference in errors and in the report. `origin` (JSON values) describes the source of the graph. Every
    precision must contain `masks`, by name.
    """

    graph: onnx.ModelProto
    reference: LogitsFunction
    reference_name: str
    input_shape: tuple[int, int, int]
    origin: Mapping[str, Any]
    masks: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def report_path(path: Path) -> Path:
    """Return the path of an ONNX file's report: `model.onnx.json` for `model.onnx`."""
    return path.with_name(path.name + REPORT_FILE.removeprefix(MODEL_FILE))


def write_network(
    network: Network, target: Path, options: ExportOptions, real: RealImages | None, pool: ImagePool | None, batch: int
) -> Path:
    """Convert a network, compare it with its reference, and write the file and its report.

    Args:
        network: The network.
        target: The ONNX file to write.
        options: Precision, calibration and form.
        real: Images to compare on. None: no comparison.
        pool: Images to calibrate an int8 graph on.
        batch: Largest batch to compare.

    Raises:
        ExportError: The images do not fit, or the network cannot be converted.
        VerificationError: The outputs differ by more than the tolerance of the precision; no file is left.
        OSError: The file cannot be written. The error names `target`.
    """
    if real is not None:
        real.check_fit(network.input_shape)
    try:
        model, calibration = _convert(network, options, pool)
    except ExportError as error:  # name the network: there may be several
        raise ExportError(f"{network.origin.get('name', 'the network')} in {options.precision}: {error}") from error
    # An imported graph that is already fp16 or int8 stays so. The int8 one must meet the float32 tolerance: the export does not change it.
    # ONNX Runtime rounds a float16 graph elsewhere in the opset of the export than in that of the file.
    computed = lowest_precision((options.precision, computed_precision(model)))
    verified_as = "fp16" if options.precision == "fp32" and computes_in_float16(model) else options.precision
    if computed != "fp32":
        model.metadata_props.add(key=PRECISION, value=computed)
    try:
        form = choose_form(model, options.mask_aware, precision=computed)
    except ExportError as error:
        raise ExportError(f"{network.origin.get('name', 'the network')}: {error}") from error
    plain, content = _serialised(model, network.masks), _serialised(form.model, network.masks)
    temporary, temporary_report = temporary_path(target), temporary_path(report_path(target))
    try:
        with os_errors_about(target):
            temporary.write_bytes(plain)
        verification, mask_aware = None, form.report
        if real is not None:
            verified = verify_onnx(
                temporary,
                network.reference,
                real.images,
                max_batch_size=batch,
                precision=verified_as,
                labels=real.labels,
                reference_name=network.reference_name,
            )
            verification = {"against": network.reference_name, "images": real.source, **verified.to_values()}
            mask_aware = verify_form(form, content, plain, real.images, max_batch_size=batch)
        report = report_from_export(
            content,
            precision=computed,
            origin=network.origin,
            verification=verification,
            tolerance=asdict(TOLERANCES[verified_as]),
            calibration=None if calibration is None else asdict(calibration),
            mask_aware=mask_aware,
        )
        with os_errors_about(target):
            temporary.write_bytes(content)
            temporary_report.write_bytes(report)
        rename_durably([(temporary_report, report_path(target)), (temporary, target)])
    finally:
        temporary.unlink(missing_ok=True)
        temporary_report.unlink(missing_ok=True)
    return target


def _serialised(model: onnx.ModelProto, masks: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Check a graph and its masks, and return its bytes."""
    check_masks(model, masks)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _convert(network: Network, options: ExportOptions, pool: ImagePool | None) -> tuple[onnx.ModelProto, Calibration | None]:
    if options.precision == "fp32":
        return network.graph, None
    if options.precision == "fp16":
        return fp16_from_onnx(network.graph), None
    if pool is None:
        raise ExportError("int8 needs real images to calibrate on: pass training images (--calibration-images FILE.npy)")
    images, calibration = calibration_images(
        pool.images_at, pool.total, source=pool.source, count=options.calibration_count, seed=options.calibration_seed
    )
    return int8_from_onnx(network.graph, images), calibration


def move_export(written: Path, target: Path) -> None:
    """Move a file that `write_network` wrote, and its report, to another path. An OSError names `target`."""
    moves = [(report_path(written), report_path(target)), (written, target)]
    renames = [(temporary_path(destination), destination) for _, destination in moves]
    try:
        with os_errors_about(target):
            for (source, _), (temporary, _) in zip(moves, renames, strict=True):
                shutil.copyfile(source, temporary)
        rename_durably(renames)
    finally:
        for temporary, _ in renames:
            temporary.unlink(missing_ok=True)


def check_output_path(target: Path) -> None:
    """Check before an export, which takes seconds, that its file can be written.

    Raises:
        ExportError: The path is a folder, or its folder does not exist.
        OSError: The folder is not writable.
    """
    if target.is_dir():
        raise ExportError(f"cannot write {target}: it is a folder; name a file, such as {target / 'network.onnx'}")
    if not target.parent.is_dir():
        raise ExportError(f"cannot write {target}: the folder {target.parent} does not exist; create it with: mkdir -p {target.parent}")
    with os_errors_about(target):
        for path in (target, report_path(target)):
            temporary_path(path).touch()
            temporary_path(path).unlink()
