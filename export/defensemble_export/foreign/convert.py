"""Rewrite an ONNX classifier of any origin to the interface of a member: `images` FP32 [N,C,H,W] to `logits` FP32 [N,K]."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from onnx import TensorProto, helper

from defensemble_repository.onnx_metadata import IR_VERSION, OPSET

from ..errors import ExportError
from ..graphs.copying import strip_metadata
from ..graphs.loading import cpu_session, translate_errors
from ..graphs.operators import QUANTISE_OPERATORS, STANDARD_DOMAINS
from ..graphs.precision import computes_in_float16
from ..graphs.traversal import names_of, nodes_of, read_by, rename, tensors_of, unique_name
from ..verification.compare import Comparison
from .interface import add_output, as_rows, check_finite, check_weights, image_input, one_class_message, select_output, wrong_output_message
from .reader import opset_of, read_foreign
from .rewrite import free_reshapes, keep_only, normalisation_arrays, normalise, set_type

Array = np.ndarray[Any, Any]
# Largest difference of a logit between a batch and single images, in units of max(1, largest |logit|): other kernels round differently.
_TOLERANCE = 1e-4
# Of a float16 graph: ten layers, each rounding by 1 / 2048. Where ONNX Runtime rounds depends on the opset: in 1.32, a float16 Relu of
# opset 18 is rounded and one of opset 20 is not, which changed logits by 4e-4.
_FLOAT16_TOLERANCE = 5e-3
# Batches that show whether something turns the free batch axis into a number, so that other batches fail or mix their images.
_TEST_BATCHES = (1, 2, 3)
_FREE_BATCH_FIX = 'export it with a dynamic batch axis (torch.onnx.export(..., dynamic_shapes=({0: torch.export.Dim("batch")},)))'


def onnx_from_foreign(
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    custom_domains: Collection[str] = (),
    input_shape: tuple[int, int, int] | None = None,
) -> onnx.ModelProto:
    """Rewrite an ONNX classifier: `images` FP32 [N,C,H,W] to `logits` FP32 [N,K], any N, IR 10, opset 20.

    External data in the folder of the file are included, and logits of (N, K, 1, 1) become (N, K). The outputs at batch 1, 2 and 3 on
    random images are compared with those of the original file. All of this runs in this process, without limits on time and memory;
    `OnnxSource` runs it with limits.

    Args:
        path: The ONNX file.
        output: The tensor that becomes `logits`. None: the only output, unless it looks like probabilities.
        mean: Mean of the normalisation (images - mean) / std to put before the network, 1 or C numbers.
        std: Standard deviation of that normalisation, 1 or C numbers.
        custom_domains: Domains of operators outside the ONNX standard to accept.
        input_shape: (C, H, W), if the file leaves it open.

    Raises:
        ExportError: The file is not an ONNX classifier of this kind. The message contains what it has, what is expected, and how to fix it.
        VerificationError: The outputs of the rewritten graph differ from those of the file.

    Example:
        >>> graph = onnx_from_foreign("resnet50.onnx", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ExportError(f"path must be the path of an ONNX file, got {path!r}")
    if isinstance(custom_domains, str):
        raise ExportError(f"custom_domains must be a collection of domains, got the string {custom_domains!r}: put it into a tuple")
    if input_shape is not None and not (isinstance(input_shape, (tuple, list)) and all(type(side) is int for side in input_shape)):
        raise ExportError(f"input_shape must be three integers, (C, H, W), got {input_shape!r}")
    file = Path(path)
    model = read_foreign(file, custom_domains)
    graph = model.graph
    images, batch, shape = image_input(graph, file, input_shape)
    normalisation = normalisation_arrays(mean, std, shape[0])
    logits = select_output(model, file, output)
    keep_only(model.graph, logits)
    if images not in {name for node in model.graph.node for name in read_by(node)}:
        raise ExportError(f"{file}: the output '{logits}' does not depend on the input '{images}': name another output (--output)")
    check_weights(graph, file)
    set_type(graph.input[0], [batch or "batch", *shape])
    model = _convert(model, file)
    graph = model.graph
    strip_metadata(model)
    graph.name = "network"
    rename(graph, {images: "images", logits: "logits"})
    set_type(graph.output[0], None)
    if normalisation is not None:
        normalise(graph, *normalisation)
    reference = foreign_reference(file, output=output, mean=mean, std=std, input_shape=input_shape)
    num_classes, is_row = _free_batch(model, file, reference, batch, shape)
    if not is_row:
        _flatten(graph)
    set_type(graph.output[0], ["batch", num_classes])
    with translate_errors("is not valid after its conversion", file=file):
        onnx.checker.check_model(model, full_check=True)
    return model


def foreign_reference(
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> Callable[[Array], Array]:
    """Return a function that runs the original file in ONNX Runtime: float32 images (N,C,H,W) in [0, 1] to logits (N,K).

    The normalisation is computed by numpy. A file with a fixed batch runs batch by batch, the last one filled up with its last image. The
    file must have passed `onnx_from_foreign` with the same arguments.

    Args:
        path: The ONNX file.
        output: See `onnx_from_foreign`.
        mean: See `onnx_from_foreign`.
        std: See `onnx_from_foreign`.
        input_shape: See `onnx_from_foreign`.

    Raises:
        ExportError: ONNX Runtime cannot load the file, or the arguments do not fit it. The returned function also raises it, if ONNX
            Runtime cannot run the file.
    """
    file = Path(path)
    model = onnx.load(file, load_external_data=False)
    outputs = [entry.name for entry in model.graph.output]
    source: str | bytes = os.fspath(file)
    is_inside = output is not None and output not in outputs
    # ONNX Runtime rejects a file whose shapes and axes are external data: its shape inference does not read them.
    if is_inside or any(tensor.data_location == TensorProto.EXTERNAL and len(tensor.dims) < 2 for tensor in tensors_of(model)):
        inner = read_foreign(file, {entry.domain for entry in model.opset_import})
        if output is not None and is_inside:
            add_output(inner, file, output)
        source = inner.SerializeToString()
    images, batch, shape = image_input(model.graph, file, input_shape)
    selected = output or outputs[0]
    normalisation = normalisation_arrays(mean, std, shape[0])
    session = _session(source, file)

    def run(sample: Array) -> Array:
        if normalisation is not None:
            sample = (sample - normalisation[0]) / normalisation[1]
        size = batch or len(sample)
        logits = []
        for start in range(0, len(sample), size):
            part = sample[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            with translate_errors(f"cannot be run by ONNX Runtime on {size} image{'s' if size > 1 else ''} of {shape}", file=file):
                (values,) = session.run([selected], {images: filled})
            rows = as_rows(values)
            if rows.ndim != 2 or len(rows) != size:
                raise ExportError(wrong_output_message(file, selected, rows.shape, size))
            if rows.shape[1] < 2:
                raise ExportError(one_class_message(file, selected, rows.shape[1]))
            logits.append(rows[: len(part)])
        return np.concatenate(logits)

    return run


def foreign_interface(model: onnx.ModelProto) -> tuple[tuple[int, int, int], int]:
    """Return (C, H, W) and the number of classes of a graph from `onnx_from_foreign`."""
    _, channels, height, width = (side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim)
    return (channels, height, width), model.graph.output[0].type.tensor_type.shape.dim[1].dim_value


def _convert(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Convert the model to our opset and IR version, and remove unused domains."""
    opset = opset_of(model, file)
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    if opset != OPSET:
        message = f"has opset {opset} and cannot be converted to {OPSET}; export it again with opset_version={OPSET}"
        if any(node.op_type in QUANTISE_OPERATORS for node in nodes_of(model.graph)):
            message += " and quantised to 8 bits (onnxruntime.quantization raises the opset to 21 for 4 and 16 bits)"
        with translate_errors(message, file=file):
            model = onnx.version_converter.convert_version(model, OPSET)
        model.ir_version = IR_VERSION
    used = {node.domain for node in nodes_of(model.graph)}.difference(STANDARD_DOMAINS)
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), *sorted(kept, key=lambda entry: entry.domain)])
    return model


def _flatten(graph: onnx.GraphProto) -> None:
    """Flatten logits with further axes of extent 1 to (N, K)."""
    inner = unique_name("logits_of_one_pixel", names_of(graph))
    rename(graph, {"logits": inner})
    graph.output[0].name = "logits"
    graph.node.append(helper.make_node("Flatten", [inner], ["logits"], axis=1))


def _free_batch(
    model: onnx.ModelProto, file: Path, reference: Callable[[Array], Array], batch: int | None, shape: tuple[int, int, int]
) -> tuple[int, bool]:
    """Make the batch of `model` free and compare it with the file; return the number of classes, and whether the output is (N, K)."""
    set_type(model.graph.input[0], ["batch", *shape])
    try:
        return _compare_batches(model, file, reference, batch, shape)
    except ExportError:
        # torch.onnx.export without dynamic shapes writes x.flatten(1) as a Reshape to [1, F].
        if batch is None or not free_reshapes(model.graph, batch):
            raise
    keep_only(model.graph, "logits")
    return _compare_batches(model, file, reference, batch, shape)


def _compare_batches(
    model: onnx.ModelProto, file: Path, reference: Callable[[Array], Array], batch: int | None, shape: tuple[int, int, int]
) -> tuple[int, bool]:
    """Compare the graph with the file at several batches; return the number of classes, and whether the output is (N, K)."""
    sample = np.random.default_rng(0).random((max(_TEST_BATCHES), *shape), np.float32)
    expected = np.concatenate([reference(image[None]) for image in sample])
    check_finite(expected, model.graph, file)
    num_classes = int(expected.shape[1])
    fixed = f"has a fixed batch of {batch}" if batch else "has a fixed batch inside, although its input has a free one"
    session = _session(model.SerializeToString(), file, f"{fixed}, and cannot be loaded with a free one: {_FREE_BATCH_FIX}")
    tolerance = _FLOAT16_TOLERANCE if computes_in_float16(model) else _TOLERANCE
    is_first = True
    for size in dict.fromkeys([batch if batch in _TEST_BATCHES else 1, *_TEST_BATCHES]):
        with translate_errors(f"{fixed}, and cannot be run on {size}: {_FREE_BATCH_FIX}", file=file):
            (values,) = session.run(["logits"], {"images": sample[:size]})
        got = as_rows(values)
        if got.shape != (size, num_classes):
            raise ExportError(f"{file} {fixed}: it returns the shape {got.shape} for {size} images; {_FREE_BATCH_FIX}")
        cause = _difference_cause(model.graph, is_batch=not is_first)
        comparison = Comparison("the converted graph", "the file itself, image by image", cause)
        where = f"{file}: {size} image{'s' if size > 1 else ''} in a batch"
        comparison.check(comparison.difference(got, expected[:size], where), tolerance, "logits", where)
        is_first = False
    return num_classes, values.ndim == 2


def _difference_cause(graph: onnx.GraphProto, *, is_batch: bool) -> str:
    """Return what may have caused a difference in a batch, or in the first comparison."""
    if not is_batch:
        return f"the conversion to opset {OPSET} changed it, or it is random: export it in eval mode with opset_version={OPSET}"
    if any(node.op_type.startswith("DynamicQuantize") for node in nodes_of(graph)):
        return (
            "it is quantised dynamically (DynamicQuantizeLinear), with scales that depend on all images of a batch: quantise it statically "
            "(onnxruntime.quantization.quantize_static), or export the original float32 network (with --precision int8)"
        )
    return f"it mixes the images of a batch, or is random: export it in eval mode and {_FREE_BATCH_FIX}"


_NOT_LOADED = (
    f"cannot be loaded by ONNX Runtime {onnxruntime.__version__}; export it with operators that this version supports (many support only "
    "float32, and not float64 or bfloat16)"
)


def _session(source: str | bytes, file: Path, message: str = _NOT_LOADED) -> onnxruntime.InferenceSession:
    with translate_errors(message, file=file):
        return cpu_session(source, threads=1, quiet=True)
