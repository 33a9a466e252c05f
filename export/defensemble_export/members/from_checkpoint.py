"""A checkpoint, or any torch module, as an ONNX file whose masks are BOOL initialisers under their own names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from defensemble_repository.onnx_metadata import CLASS_NAMES, MASK_DIGEST, PRECISION, PREPROCESSING, RECORD, SPEC
from defensemble_repository.reader import checked_batch_size

from ..entries.members import DEFAULT_MAX_BATCH_SIZE, ExportedMember, preprocessing_from_text
from ..errors import ExportError
from ..foreign.reader import check_is_checkpoint
from ..graphs.tracing import graph_from_module
from ..graphs.traversal import metadata_of
from ..labels import checked_class_names
from ..verification.images import ImagePool, RealImages, dataset_of, images_for_verification
from ..verification.network import reference_from_module
from .write import Form, Network, check_place, report_beside, write_form

if TYPE_CHECKING:
    import torch


def onnx_from_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    form: Form | None = None,
    verify: bool = True,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Export a checkpoint to ``path``: ``images`` FP32 [N,C,H,W] in [0, 1] to ``logits`` FP32 [N,K], any N, computed as ``form`` says.

    The file is what ``onnx_from_module`` writes, and its metadata hold the spec, the training record and, where that states it, how images
    are brought to size too. It is verified, unless ``verify`` is False, on ``images`` (N,C,H,W), by default test images of the data that
    the checkpoint was trained on (from ``data_dir`` where it is given), and on random ones. An int8 graph is calibrated on training images
    of these data, unless ``form`` has others.

    Raises:
        ExportError: the checkpoint is ONNX, or of another framework; ``images`` are not float32 of its shape, or there are none;
            ``max_batch_size`` is not 1 to 4096; ``path`` is no place; the network cannot be converted to the precision.
        VerificationError: the graph answers otherwise than the checkpoint, by more than the precision may; no file is left.
        OSError: the file cannot be written; names ``path``.
        defensemble_training.CheckpointError: the checkpoint cannot be read.
    """
    check_is_checkpoint(Path(checkpoint))
    from defensemble_training import load_checkpoint

    form = Form() if form is None else form
    checked_batch_size(max_batch_size, "max_batch_size")
    check_place(Path(path))
    module, spec, record = load_checkpoint(Path(checkpoint))
    real = None if images is None else RealImages(images, "images of the user's")
    pool = None if form.calibration_images is None else ImagePool.of(form.calibration_images, spec.input_shape)
    if (verify and real is None) or (form.precision == "int8" and pool is None):
        dataset = dataset_of(record, spec.input_shape, data_dir)
        real = images_for_verification(dataset) if real is None else real
        if pool is None:
            pool = ImagePool(dataset.train.images, len(dataset.train), f"training images of {dataset.name}")
    resized = {} if record.preprocessing is None else {PREPROCESSING: json.dumps(record.preprocessing)}
    network = _network(
        module,
        spec.input_shape,
        record.class_names,
        {SPEC: spec.to_json(), RECORD: json.dumps(record.to_values()), **resized},
        {"kind": "checkpoint", "name": Path(checkpoint).name, "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()},
        None if not verify else real,
    )
    return write_form(network, Path(path), form, real if verify else None, pool, max_batch_size)


def onnx_from_module(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    images: np.ndarray[Any, Any],
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    form: Form | None = None,
) -> Path:
    """Export any network that takes images in [0, 1] to logits, such as one that ``defective`` made, to ``path``.

    ``images`` FP32 [N,C,H,W] to ``logits`` FP32 [N,K], any N; IR 10, opset 20, BatchNorm folded into the convolutions; each mask is a BOOL
    initialiser under its name in the module, in every precision. The file's metadata hold the mask digest and the class names. ONNX
    Runtime's answers on the real ``images`` (N,C,H,W) and on random ones are compared with torch's before the file appears under its name,
    and a report of it beside the file. For int8, ``form`` has to hold images to calibrate on.

    Raises:
        ExportError, VerificationError, OSError: see ``onnx_from_checkpoint``.
    """
    form = Form() if form is None else form
    checked_batch_size(max_batch_size, "max_batch_size")
    check_place(Path(path))
    real = RealImages(images, "images of the user's")
    pool = None if form.calibration_images is None else ImagePool.of(form.calibration_images, input_shape)
    network = _network(module.eval(), input_shape, class_names, {}, {"kind": "module"}, real)
    return write_form(network, Path(path), form, real, pool, max_batch_size)


def member_from_onnx(path: str | os.PathLike[str], name: str) -> ExportedMember:
    """Read back what this package wrote, with the report beside it where there is one, as the member ``name`` of a repository.

    Raises:
        ExportError: the file is not such a file, or its metadata state a rule for the size of images that is not known here.
    """
    content = Path(path).read_bytes()
    model = onnx.load_model_from_string(content)
    metadata = metadata_of(model)
    if CLASS_NAMES not in metadata:
        raise ExportError(f"{path} does not carry {CLASS_NAMES} in its metadata: import it with `defensemble import-onnx`")
    class_names = json.loads(metadata[CLASS_NAMES])
    _, channels, height, width = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
    report = report_beside(Path(path))
    return ExportedMember(
        name,
        content,
        (channels, height, width),
        len(class_names),
        tuple(class_names),
        metadata.get(MASK_DIGEST),
        metadata.get(PRECISION, "fp32"),
        report.read_bytes() if report.exists() else None,
        preprocessing_from_text(metadata.get(PREPROCESSING), str(path)),
    )


def _network(
    module: torch.nn.Module,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    metadata: dict[str, str],
    origin: dict[str, Any],
    real: RealImages | None,
) -> Network:
    import torch

    from defensemble_training import defect_masks, mask_digest

    if real is not None:
        real.check_fit(input_shape)  # before the slow work
    names = checked_class_names(class_names, "class_names")
    masks = defect_masks(module)
    digest = mask_digest(masks)
    graph = graph_from_module(module, input_shape, masks)
    onnx.helper.set_model_props(graph, {MASK_DIGEST: digest, CLASS_NAMES: json.dumps(names), **metadata})
    against = f"torch {torch.__version__}"
    return Network(graph, reference_from_module(module), against, input_shape, {**origin, "mask_digest": digest}, masks)
