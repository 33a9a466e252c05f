"""From a network in float32 to the file that is served: converted to its precision, compared with the network, and reported on."""

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
from ..graphs.tracing import check_masks
from ..verification.images import ImagePool, RealImages
from ..verification.network import Answers, verify_onnx
from ..verification.tolerances import TOLERANCES, checked_precision, computed_precision, lowest_precision
from .calibration import DEFAULT_COUNT, DEFAULT_SEED, Calibration, calibration_images
from .report import report_from_export


@dataclass(frozen=True, eq=False)
class Form:
    """In which precision a network is exported, and for int8 on which images it is calibrated.

    ``calibration_images`` (N,C,H,W), float32 in [0, 1]; None: training images of the data that a checkpoint was trained on. Of them
    ``calibration_count`` are drawn by ``calibration_seed``.

    Raises:
        ExportError: no such precision, or a count or seed out of range.
    """

    precision: str = "fp32"
    calibration_images: np.ndarray[Any, Any] | None = None
    calibration_count: int = DEFAULT_COUNT
    calibration_seed: int = DEFAULT_SEED

    def __post_init__(self) -> None:
        checked_precision(self.precision)
        Calibration(self.calibration_count, self.calibration_seed)


@dataclass(frozen=True, eq=False)
class Network:
    """What is to be exported: its graph in float32, with its metadata, and what answers rightly for it.

    ``against`` says who answers; ``origin`` (JSON values) what it was made from; ``masks`` by name are to be found in every form of it.
    """

    graph: onnx.ModelProto
    answers: Answers
    against: str
    input_shape: tuple[int, int, int]
    origin: Mapping[str, Any]
    masks: Mapping[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def report_beside(path: Path) -> Path:
    """Where the report of an ONNX file lies: ``model.onnx.json`` beside ``model.onnx``."""
    return path.with_name(path.name + REPORT_FILE.removeprefix(MODEL_FILE))


def write_form(network: Network, target: Path, form: Form, real: RealImages | None, pool: ImagePool | None, batch: int) -> Path:
    """Write ``network`` in ``form`` to ``target`` and its report beside it, once its answers to ``real`` images were compared (None: not).

    Raises:
        ExportError: the images do not fit, or the network cannot be converted.
        VerificationError: the file would answer otherwise than the network; nothing is left.
        OSError: it cannot be written; names ``target``.
    """
    if real is not None:
        real.check_fit(network.input_shape)
    try:
        model, calibration = _converted(network, form, pool)
    except ExportError as error:  # which of several
        raise ExportError(f"{network.origin.get('name', 'the network')} in {form.precision}: {error}") from error
    # What others have quantised or halved stays so, and is compared as closely as float32: an export changes nothing of it.
    computed = lowest_precision((form.precision, computed_precision(model)))
    if computed != "fp32":
        model.metadata_props.add(key=PRECISION, value=computed)
    check_masks(model, network.masks)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    temporary, temporary_report = temporary_path(target), temporary_path(report_beside(target))
    try:
        with os_errors_about(target):
            temporary.write_bytes(content)
        verification = None
        if real is not None:
            found = verify_onnx(
                temporary,
                network.answers,
                real.images,
                max_batch_size=batch,
                precision=form.precision,
                labels=real.labels,
                against=network.against,
            )
            verification = {"against": network.against, "images": real.source, **found.to_values()}
        report = report_from_export(
            content,
            precision=computed,
            origin=network.origin,
            verification=verification,
            tolerance=asdict(TOLERANCES[form.precision]),
            calibration=None if calibration is None else asdict(calibration),
        )
        with os_errors_about(target):
            temporary_report.write_bytes(report)
        rename_durably([(temporary_report, report_beside(target)), (temporary, target)])
    finally:
        temporary.unlink(missing_ok=True)
        temporary_report.unlink(missing_ok=True)
    return target


def _converted(network: Network, form: Form, pool: ImagePool | None) -> tuple[onnx.ModelProto, Calibration | None]:
    if form.precision == "fp32":
        return network.graph, None
    if form.precision == "fp16":
        return fp16_from_onnx(network.graph), None
    if pool is None:
        raise ExportError("int8 is calibrated on real images: pass some training images (--calibration-images FILE.npy)")
    images, calibration = calibration_images(
        pool.images_at, pool.total, source=pool.source, count=form.calibration_count, seed=form.calibration_seed
    )
    return int8_from_onnx(network.graph, images), calibration


def move_form(written: Path, target: Path) -> None:
    """Move what `write_form` wrote, with its report, to another place; an OSError names ``target``."""
    places = [(report_beside(written), report_beside(target)), (written, target)]
    renames = [(temporary_path(place), place) for _, place in places]
    try:
        with os_errors_about(target):
            for (source, _), (temporary, _) in zip(places, renames, strict=True):
                shutil.copyfile(source, temporary)
        rename_durably(renames)
    finally:
        for temporary, _ in renames:
            temporary.unlink(missing_ok=True)


def check_place(target: Path) -> None:
    """Find out before an export, which takes seconds, whether its file can be written (ExportError, OSError)."""
    if target.is_dir():
        raise ExportError(f"cannot write {target}: it is a folder; name a file, such as {target / 'network.onnx'}")
    if not target.parent.is_dir():
        raise ExportError(f"cannot write {target}: there is no folder {target.parent}; make it with: mkdir -p {target.parent}")
    with os_errors_about(target):
        temporary_path(target).touch()
        temporary_path(target).unlink()
