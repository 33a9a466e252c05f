"""A checkpoint as an ONNX file whose masks are BOOL initialisers under their own names."""

from __future__ import annotations

import ast
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from ._errors import ExportError, VerificationError
from .averaging import IR_VERSION, OPSET
from .plan import DEFAULT_MAX_BATCH_SIZE, Member
from .reading import checked_batch
from .verify import verify_onnx

if TYPE_CHECKING:
    import torch

    from defensemble_training import TrainingRecord

# Of the test images, so many are drawn from.
_REAL_IMAGES = 1000
# Keys of the ONNX file's metadata.
SPEC, MASK_DIGEST, CLASS_NAMES, RECORD = "defensemble.spec", "defensemble.mask_digest", "defensemble.class_names", "defensemble.record"


def onnx_from_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
    verify: bool = True,
    images: np.ndarray[Any, Any] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Export a checkpoint to ``path``: ``images`` FP32 [N,C,H,W] in [0, 1] to ``logits`` FP32 [N,K], any N.

    The file is what ``onnx_from_module`` writes, and its metadata hold the spec and the training record too. It is verified, unless
    ``verify`` is False, on ``images`` (N,C,H,W), by default test images of the data that the checkpoint was trained on (from ``data_dir``
    where it is given), and on random ones.

    Raises:
        ExportError: ``images`` are not float32 of the checkpoint's shape, or there are none; ``max_batch_size`` is not 1 to 4096; ``path``
            is no place.
        VerificationError: the graph answers otherwise than the checkpoint; no file is left.
        OSError: the file cannot be written; names ``path``.
        defensemble_training.CheckpointError: the checkpoint cannot be read.
    """
    from defensemble_training import load_checkpoint

    checked_batch(max_batch_size, "max_batch_size")
    _check_place(Path(path))
    module, spec, record = load_checkpoint(Path(checkpoint))
    if verify and images is None:
        images = _real_images(record, spec.input_shape, data_dir)
    more = {SPEC: spec.to_json(), RECORD: json.dumps(record.to_values())}
    return _write(module, Path(path), spec.input_shape, record.class_names, images if verify else None, max_batch_size, more)


def onnx_from_module(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    images: np.ndarray[Any, Any],
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE,
) -> Path:
    """Export any network that takes images in [0, 1] to logits, such as one that ``defective`` made, to ``path``.

    ``images`` FP32 [N,C,H,W] to ``logits`` FP32 [N,K], any N; IR 10, opset 20, BatchNorm folded into the convolutions; each mask is a BOOL
    initialiser under its name in the module. The file's metadata hold the mask digest and the class names. ONNX Runtime's answers on the
    real ``images`` (N,C,H,W) and on random ones are compared with torch's before the file appears under its name.

    Raises:
        ExportError, VerificationError, OSError: see ``onnx_from_checkpoint``.
    """
    checked_batch(max_batch_size, "max_batch_size")
    _check_place(Path(path))
    return _write(module.eval(), Path(path), input_shape, class_names, images, max_batch_size, {})


def _write(
    module: torch.nn.Module,
    target: Path,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    images: np.ndarray[Any, Any] | None,
    max_batch_size: int,
    more: dict[str, str],
) -> Path:
    from defensemble_training import defect_masks, mask_digest

    masks = defect_masks(module)
    if images is not None:
        _check_images(images, input_shape)
    model = _exported(module, input_shape, masks)
    _check_masks(model, masks)
    metadata = {MASK_DIGEST: mask_digest(masks), CLASS_NAMES: json.dumps(list(class_names)), **more}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    temporary = _aside(target)
    try:
        with _named(target):
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        if images is not None:
            verify_onnx(temporary, module, images, max_batch_size=max_batch_size)
        with _named(target):
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def member_from_onnx(path: str | os.PathLike[str], name: str) -> Member:
    """Read back what ``onnx_from_checkpoint`` or ``onnx_from_module`` wrote, as the member ``name`` of a repository.

    Raises:
        ExportError: the file is not such a file.
    """
    content = Path(path).read_bytes()
    model = onnx.load_model_from_string(content)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    missing = [key for key in (MASK_DIGEST, CLASS_NAMES) if key not in metadata]
    if missing:
        raise ExportError(f"{path} does not carry {', '.join(missing)} in its metadata: export it from a checkpoint")
    class_names = json.loads(metadata[CLASS_NAMES])
    _, channels, height, width = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
    return Member(name, content, (channels, height, width), len(class_names), tuple(class_names), metadata[MASK_DIGEST])


def _exported(module: torch.nn.Module, input_shape: tuple[int, int, int], masks: dict[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    import torch

    # Two images: an example batch of one would be taken for a constant.
    example = (torch.zeros(2, *input_shape),)
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    _name_masks(model, masks)
    _strip(model)
    return model


def _name_masks(model: onnx.ModelProto, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    """Give each ``Where`` its own mask again: torch's optimiser merges initialisers that are equal, as small masks can be by chance."""
    present = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Where":
            continue
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        for name in (f"{scope}.mask" for scope in reversed(scopes)):
            if name in masks:
                node.input[0] = name
                if name not in present:
                    model.graph.initializer.append(numpy_helper.from_array(masks[name], name))
                    present.add(name)
                break


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about its own run: it names this machine's paths and changes nothing that is computed."""
    graph = model.graph
    entries: list[Any] = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for entry in entries:
        del entry.metadata_props[:]
        entry.doc_string = ""
    del graph.value_info[:]
    del model.metadata_props[:]
    model.producer_name = "defensemble"
    model.producer_version = ""


def _check_masks(model: onnx.ModelProto, masks: dict[str, np.ndarray[Any, Any]]) -> None:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL}
    for name, mask in masks.items():
        if name not in found:
            raise VerificationError(f"mask '{name}' is not a BOOL initialiser of the exported graph, which has {sorted(found) or 'none'}")
        if not np.array_equal(found[name], mask):
            raise VerificationError(f"mask '{name}' in the exported graph differs from the checkpoint's")


def _check_place(target: Path) -> None:
    """An export takes seconds: find out first whether its file can be written."""
    if target.is_dir():
        raise ExportError(f"cannot write {target}: it is a folder; name a file, such as {target / 'network.onnx'}")
    if not target.parent.is_dir():
        raise ExportError(f"cannot write {target}: there is no folder {target.parent}; make it with: mkdir -p {target.parent}")
    with _named(target):
        _aside(target).touch()
        _aside(target).unlink()


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Let what the operating system refuses bear the name that the user gave, not that of the file aside."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _check_images(images: np.ndarray[Any, Any], input_shape: tuple[int, int, int]) -> None:
    if images.shape[1:] != input_shape or not len(images):
        raise ExportError(
            f"the checkpoint takes images of {input_shape}, those for its verification have the shape {images.shape}: "
            "pass at least one image of that shape, (N, C, H, W)"
        )
    if images.dtype != np.float32:
        raise ExportError(f"the images for the verification are {images.dtype}, expected float32 in [0, 1]: convert them with .astype")
    if not (images.min() >= 0 and images.max() <= 1):  # also where one is NaN
        raise ExportError(
            f"the images for the verification must lie in [0, 1], got values from {images.min():g} to {images.max():g}: "
            "divide those of 0 to 255 by 255, and leave out what is not a number"
        )


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"


def _real_images(
    record: TrainingRecord, input_shape: tuple[int, int, int], data_dir: str | os.PathLike[str] | None
) -> np.ndarray[Any, Any]:
    from defensemble_training import DataError, load_dataset

    try:
        dataset = load_dataset(record.data, input_shape[1], data_dir=None if data_dir is None else Path(data_dir))
    except DataError as error:
        raise ExportError(
            f"the export is verified on test images of {record.data!r}, which the checkpoint was trained on: {error}. "
            "Say where they are (--data-dir), or pass others (--images FILE.npy)"
        ) from error
    if dataset.class_names != record.class_names:
        raise ExportError(
            f"the data for the verification ({dataset.source}) have the classes {_some(dataset.class_names)}, the checkpoint was "
            f"trained on {_some(record.class_names)}: name the folder of the data that it was trained on (--data-dir), or pass "
            "others (--images FILE.npy)"
        )
    images: np.ndarray[Any, Any] = dataset.test.images(slice(0, _REAL_IMAGES))
    return images


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from printing notes about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
