"""Anyone's ONNX classifier as a member: read, checked and rewritten to ``images`` FP32 [N,C,H,W] -> ``logits`` FP32 [N,K]."""

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
from ..graphs.copying import strip
from ..graphs.loading import cpu_session, translated
from ..graphs.operators import QUANTISERS, STANDARD_DOMAINS
from ..graphs.traversal import fresh, names_of, nodes_of, read_by, rename, tensors_of
from ..verification.compare import Comparison
from .interface import add_output, as_rows, check_finite, check_weights, chosen_output, image_input, one_class, wrong_output
from .reader import opset_of, read_foreign
from .rewrite import free_reshapes, keep_only, normalise, set_type, statistics

Array = np.ndarray[Any, Any]
# Largest difference of a logit in units of max(1, largest |logit|), of a batch against images one by one: other kernels, other rounding.
_TOLERANCE = 1e-4
# What changes a free batch axis into a number, so that other batches fail or are mixed up.
_TRIED_BATCHES = (1, 2, 3)
_FREE_BATCH_MEND = 'export it with a dynamic batch axis (torch.onnx.export(..., dynamic_shapes=({0: torch.export.Dim("batch")},)))'


def onnx_from_foreign(
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    custom_domains: Collection[str] = (),
    input_shape: tuple[int, int, int] | None = None,
) -> onnx.ModelProto:
    """Read the ONNX classifier ``path`` and rewrite it: ``images`` FP32 [N,C,H,W] to ``logits`` FP32 [N,K], any N, IR 10, opset 20.

    ``output`` names the tensor that becomes ``logits``; with None the only output, unless it looks like probabilities. ``mean`` and ``std``
    (1 or C numbers each) put (images - mean) / std before it. ``custom_domains`` names domains of operators beyond the standard's that are
    accepted, ``input_shape`` (C, H, W) what the file leaves open. Weights in other files of the same folder are read in, and logits of
    (N, K, 1, 1) become (N, K). The answers at batch 1, 2 and 3 on random images are compared with those of the file itself.

    All of this happens in this process, for as long as the file takes: `OnnxSource` bounds it.

    Raises:
        ExportError: the file is not what is taken; says what it has, what is expected, and how to mend it.
        VerificationError: the rewritten graph answers otherwise than the file.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ExportError(f"path must name an ONNX file, got {path!r}")
    if isinstance(custom_domains, str):
        raise ExportError(f"custom_domains must be a collection of domains, got the text {custom_domains!r}: put it into a tuple")
    if input_shape is not None and not (isinstance(input_shape, (tuple, list)) and all(type(side) is int for side in input_shape)):
        raise ExportError(f"input_shape must be three integers, (C, H, W), got {input_shape!r}")
    file = Path(path)
    model = read_foreign(file, custom_domains)
    graph = model.graph
    images, batch, shape = image_input(graph, file, input_shape)
    normalisation = statistics(mean, std, shape[0])
    logits = chosen_output(model, file, output)
    keep_only(model.graph, logits)
    if images not in {name for node in model.graph.node for name in read_by(node)}:
        raise ExportError(f"{file}: the output '{logits}' does not depend on the input '{images}': name another one (--output)")
    check_weights(graph, file)
    set_type(graph.input[0], [batch or "batch", *shape])
    model = _converted(model, file)
    graph = model.graph
    strip(model)
    graph.name = "network"
    rename(graph, {images: "images", logits: "logits"})
    set_type(graph.output[0], None)
    if normalisation is not None:
        normalise(graph, *normalisation)
    ask = foreign_reference(file, output=output, mean=mean, std=std, input_shape=input_shape)
    num_classes, is_row = _freed(model, file, ask, batch, shape)
    if not is_row:
        _flatten(graph)
    set_type(graph.output[0], ["batch", num_classes])
    with translated("is not valid after its conversion", file=file):
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
    """Ask the file itself, as it is, in ONNX Runtime: float32 images (N,C,H,W) in [0, 1] to logits (N,K).

    The normalisation is numpy's. A file of a fixed batch is asked batch by batch, the last one filled up with its last image. The file has
    passed ``onnx_from_foreign`` with the same arguments.

    Raises:
        ExportError: ONNX Runtime does not load the file, or the arguments do not fit it; when it is asked, also that it does not run.
    """
    file = Path(path)
    model = onnx.load(file, load_external_data=False)
    outputs = [one.name for one in model.graph.output]
    source: str | bytes = os.fspath(file)
    is_inside = output is not None and output not in outputs
    # ONNX Runtime refuses a file whose shapes and axes are outside of it: its shape inference does not read them there.
    if is_inside or any(tensor.data_location == TensorProto.EXTERNAL and len(tensor.dims) < 2 for tensor in tensors_of(model)):
        inner = read_foreign(file, {entry.domain for entry in model.opset_import})
        if output is not None and is_inside:
            add_output(inner, file, output)
        source = inner.SerializeToString()
    images, batch, shape = image_input(model.graph, file, input_shape)
    asked = output or outputs[0]
    normalisation = statistics(mean, std, shape[0])
    session = _session(source, file)

    def answer(sample: Array) -> Array:
        if normalisation is not None:
            sample = (sample - normalisation[0]) / normalisation[1]
        size = batch or len(sample)
        answers = []
        for start in range(0, len(sample), size):
            part = sample[start : start + size]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            with translated(f"does not run in ONNX Runtime on {size} image{'s' if size > 1 else ''} of {shape}", file=file):
                (given,) = session.run([asked], {images: filled})
            given = as_rows(given)
            if given.ndim != 2 or len(given) != size:
                raise ExportError(wrong_output(file, asked, given.shape, size))
            if given.shape[1] < 2:
                raise ExportError(one_class(file, asked, given.shape[1]))
            answers.append(given[: len(part)])
        return np.concatenate(answers)

    return answer


def foreign_interface(model: onnx.ModelProto) -> tuple[tuple[int, int, int], int]:
    """What ``onnx_from_foreign`` returned takes and gives: (C, H, W) and the number of classes."""
    _, channels, height, width = (side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim)
    return (channels, height, width), model.graph.output[0].type.tensor_type.shape.dim[1].dim_value


def _converted(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model at our opset and IR version, with no domain that no node uses."""
    opset = opset_of(model, file)
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    if opset != OPSET:
        message = f"has opset {opset} and cannot be converted to {OPSET}; export it again with opset_version={OPSET}"
        if any(node.op_type in QUANTISERS for node in nodes_of(model.graph)):
            message += " and quantised to 8 bits (onnxruntime.quantization raises the opset to 21 for 4 and 16 bits)"
        with translated(message, file=file):
            model = onnx.version_converter.convert_version(model, OPSET)
        model.ir_version = IR_VERSION
    used = {node.domain for node in nodes_of(model.graph)}.difference(STANDARD_DOMAINS)
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), *sorted(kept, key=lambda entry: entry.domain)])
    return model


def _flatten(graph: onnx.GraphProto) -> None:
    """Make (N, K) of logits that have further axes of one value."""
    inner = fresh("logits_of_one_pixel", names_of(graph))
    rename(graph, {"logits": inner})
    graph.output[0].name = "logits"
    graph.node.append(helper.make_node("Flatten", [inner], ["logits"], axis=1))


def _freed(
    model: onnx.ModelProto, file: Path, ask: Callable[[Array], Array], batch: int | None, shape: tuple[int, int, int]
) -> tuple[int, bool]:
    """Make the batch of ``model`` free and compare it with the file; return the number of classes, and whether the graph gives (N, K)."""
    set_type(model.graph.input[0], ["batch", *shape])
    try:
        return _try(model, file, ask, batch, shape)
    except ExportError:
        # torch.onnx.export without dynamic shapes writes x.flatten(1) as a Reshape to [1, F].
        if batch is None or not free_reshapes(model.graph, batch):
            raise
    keep_only(model.graph, "logits")
    return _try(model, file, ask, batch, shape)


def _try(
    model: onnx.ModelProto, file: Path, ask: Callable[[Array], Array], batch: int | None, shape: tuple[int, int, int]
) -> tuple[int, bool]:
    """Compare the graph with the file at several batches; return the number of classes, and whether the graph gives (N, K)."""
    sample = np.random.default_rng(0).random((max(_TRIED_BATCHES), *shape), np.float32)
    expected = np.concatenate([ask(image[None]) for image in sample])
    check_finite(expected, model.graph, file)
    num_classes = int(expected.shape[1])
    fixed = f"has a fixed batch of {batch}" if batch else "has a fixed batch inside, though its input does not say so"
    session = _session(model.SerializeToString(), file, f"{fixed}, and is not loaded with a free one: {_FREE_BATCH_MEND}")
    tried = False
    for size in dict.fromkeys([batch if batch in _TRIED_BATCHES else 1, *_TRIED_BATCHES]):
        with translated(f"{fixed}, and does not run on {size}: {_FREE_BATCH_MEND}", file=file):
            (given,) = session.run(["logits"], {"images": sample[:size]})
        got = as_rows(given)
        if got.shape != (size, num_classes):
            raise ExportError(f"{file} {fixed}: it answers the shape {got.shape} to {size} images; {_FREE_BATCH_MEND}")
        comparison = Comparison("the converted graph", "the file itself, image by image", _why_it_differs(model.graph, is_batch=tried))
        where = f"{file}: {size} image{'s' if size > 1 else ''} at once"
        comparison.check(comparison.difference(got, expected[:size], where), _TOLERANCE, "logits", where)
        tried = True
    return num_classes, given.ndim == 2


def _why_it_differs(graph: onnx.GraphProto, *, is_batch: bool) -> str:
    """What may have caused another answer to several images at once, or to the very first."""
    if not is_batch:
        return f"it was not converted to opset {OPSET} faithfully, or is random: export it in eval mode with opset_version={OPSET}"
    if any(node.op_type.startswith("DynamicQuantize") for node in nodes_of(graph)):
        return (
            "it is quantised dynamically (DynamicQuantizeLinear), by scales that depend on all images of a batch: quantise it statically "
            "(onnxruntime.quantization.quantize_static), or export the float32 network that it was made from (with --precision int8)"
        )
    return f"it mixes the images of a batch, or is random: export it in eval mode and {_FREE_BATCH_MEND}"


_NOT_LOADED = (
    f"is not loaded by ONNX Runtime {onnxruntime.__version__}; export it with operators that this has (many compute in float32 alone, and "
    "not in float64 or bfloat16)"
)


def _session(source: str | bytes, file: Path, message: str = _NOT_LOADED) -> onnxruntime.InferenceSession:
    with translated(message, file=file):
        return cpu_session(source, threads=1, quiet=True)
