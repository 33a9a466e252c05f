"""Export checkpoints and torch modules to ONNX files whose masks are BOOL initialisers under their own names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from defensemble_ops import OPERATOR
from defensemble_repository.onnx_metadata import CLASS_NAMES, MASK_DIGEST, PRECISION, PREPROCESSING, RECORD, SPEC
from defensemble_repository.reader import checked_batch_size

from ..entries.members import DEFAULT_MAX_BATCH_SIZE, ExportedMember, preprocessing_from_text
from ..errors import ExportError
from ..foreign.reader import check_is_checkpoint
from ..graphs.mask_aware import is_mask_aware
from ..graphs.tracing import graph_from_module
from ..graphs.traversal import metadata_of
from ..labels import checked_class_names
from ..verification.images import USER_IMAGES, ImagePool, RealImages, dataset_from_record, images_for_verification
from ..verification.network import reference_from_module
from .write import ExportOptions, Network, check_output_path, report_path, write_network

if TYPE_CHECKING:
    import torch


def onnx_from_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    options: ExportOptions | None = None,
    verify: bool = True,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Export a checkpoint to an ONNX file: `images` FP32 [N,C,H,W] in [0, 1] to `logits` FP32 [N,K], any N.

    The graph is the one that `onnx_from_module` writes; its metadata also contain the spec, the training record and the preprocessing, if
    recorded.

    Args:
        checkpoint: The checkpoint (.safetensors).
        path: The ONNX file to write. Its report is written to `<path>.json`.
        max_batch_size: Largest batch to verify, 1 to 4096.
        options: Precision, calibration and form. An int8 graph is calibrated on training images of the checkpoint's dataset by default.
        verify: Compare the outputs of the file with those of the checkpoint, on real and random images.
        images: Real images to verify on, float32 (N,C,H,W) in [0, 1]. None: test images of the checkpoint's dataset.
        data_dir: Folder of that dataset.

    Raises:
        ExportError: The checkpoint is ONNX or belongs to another framework, the images do not fit or are not found, `max_batch_size` is out
            of range, `path` cannot be a file, or the network cannot be converted to the precision.
        VerificationError: The outputs differ by more than the tolerance of the precision; no file is left.
        OSError: The file cannot be written. The error names `path`.
        defensemble_training.CheckpointError: The checkpoint cannot be read.

    Example:
        >>> onnx_from_checkpoint("vgg19.safetensors", "vgg19.onnx", options=ExportOptions("fp16"))
    """
    check_is_checkpoint(Path(checkpoint))
    from defensemble_training import load_checkpoint

    options = ExportOptions() if options is None else options
    checked_batch_size(max_batch_size, "max_batch_size")
    check_output_path(Path(path))
    module, spec, record = load_checkpoint(Path(checkpoint))
    real = None if images is None else RealImages(images, USER_IMAGES)
    pool = None if options.calibration_images is None else ImagePool.from_images(options.calibration_images, spec.input_shape)
    if (verify and real is None) or (options.precision == "int8" and pool is None):
        dataset = dataset_from_record(record, spec.input_shape, data_dir)
        real = images_for_verification(dataset) if real is None else real
        if pool is None:
            pool = ImagePool(dataset.train.images, len(dataset.train), f"training images of {dataset.name}")
    preprocessing = {} if record.preprocessing is None else {PREPROCESSING: json.dumps(record.preprocessing)}
    network = _network_from_module(
        module,
        spec.input_shape,
        record.class_names,
        {SPEC: spec.to_json(), RECORD: json.dumps(record.to_values()), **preprocessing},
        {"kind": "checkpoint", "name": Path(checkpoint).name, "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()},
        None if not verify else real,
    )
    return write_network(network, Path(path), options, real if verify else None, pool, max_batch_size)


def onnx_from_module(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    images: np.ndarray[Any, Any],
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    options: ExportOptions | None = None,
) -> Path:
    """Export a torch network that maps images in [0, 1] to logits, such as the result of `defective`, to an ONNX file.

    The graph maps `images` FP32 [N,C,H,W] to `logits` FP32 [N,K], any N: IR 10, opset 20, BatchNorm folded into the convolutions. In every
    precision, each mask is a BOOL initialiser under its name in the module. The metadata contain the mask digest and the class names.
    Before the file is written under its name, its outputs in ONNX Runtime are compared with those of torch, on real and random images.

    Args:
        module: The network. It is put into eval mode.
        path: The ONNX file to write. Its report is written to `<path>.json`.
        input_shape: (C, H, W) of the images.
        class_names: One name per class, in the order of the logits.
        images: Real images to verify on, float32 (N,C,H,W) in [0, 1].
        max_batch_size: Largest batch to verify, 1 to 4096.
        options: Precision, calibration and form. For int8, `calibration_images` are required.

    Raises:
        ExportError: See `onnx_from_checkpoint`.
        VerificationError: The outputs differ by more than the tolerance of the precision; no file is left.
        OSError: The file cannot be written. The error names `path`.

    Example:
        >>> network = defective(resnet, (3, 32, 32), layers=["conv1", "layer1"], keep=0.7)
        >>> onnx_from_module(network, "net.onnx", input_shape=(3, 32, 32), class_names=names, images=test_images)
    """
    options = ExportOptions() if options is None else options
    checked_batch_size(max_batch_size, "max_batch_size")
    check_output_path(Path(path))
    real = RealImages(images, USER_IMAGES)
    pool = None if options.calibration_images is None else ImagePool.from_images(options.calibration_images, input_shape)
    network = _network_from_module(module.eval(), input_shape, class_names, {}, {"kind": "module"}, real)
    return write_network(network, Path(path), options, real, pool, max_batch_size)


def member_from_onnx(path: str | os.PathLike[str], name: str) -> ExportedMember:
    """Read an ONNX file that this package wrote, and its report if there is one, as a member.

    Args:
        path: The ONNX file.
        name: The name of the member.

    Raises:
        ExportError: This package did not write the file, or its metadata contain an unknown preprocessing rule.

    Example:
        >>> member = member_from_onnx("vgg19.onnx", "vgg")
        >>> write_files(repository, planned_files(repository, [member]))
    """
    content = Path(path).read_bytes()
    model = onnx.load_model_from_string(content)
    metadata = metadata_of(model)
    if CLASS_NAMES not in metadata:
        raise ExportError(f"{path} has no {CLASS_NAMES} in its metadata: import it with `defensemble import-onnx {path} --name {name}`")
    class_names = json.loads(metadata[CLASS_NAMES])
    _, channels, height, width = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
    report = report_path(Path(path))
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
        OPERATOR if is_mask_aware(model) else None,
    )


def _network_from_module(
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
        real.check_fit(input_shape)  # before any slow work
    names = checked_class_names(class_names, "class_names")
    masks = defect_masks(module)
    digest = mask_digest(masks)
    graph = graph_from_module(module, input_shape, masks)
    onnx.helper.set_model_props(graph, {MASK_DIGEST: digest, CLASS_NAMES: json.dumps(names), **metadata})
    reference_name = f"torch {torch.__version__}"
    return Network(graph, reference_from_module(module), reference_name, input_shape, {**origin, "mask_digest": digest}, masks)
