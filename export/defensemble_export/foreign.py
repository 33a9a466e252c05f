"""Anyone's ONNX classifier as a member: read without trust, checked, and rewritten to ``images`` FP32 [N,C,H,W] -> ``logits`` FP32 [N,K]."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
import onnx.version_converter
import onnxruntime
from onnx import TensorProto, helper

from ._errors import ExportError, VerificationError
from .averaging import IR_VERSION, OPSET
from .foreign_file import opset_of, read_foreign, translated
from .foreign_graph import keep_only, normalise, probabilities_from, real_inputs, rename, set_type, statistics, strip

Array = np.ndarray[Any, Any]
# Values of one image: 4,700 x 4,700 in three colours. What asks for more is a mistake, and trying it would end the memory first.
_LARGEST_IMAGE = 2**26
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
    accepted, ``input_shape`` (C, H, W) what the file leaves open. Weights in other files of the same folder are read in. The answers at
    batch 1, 2 and 3 on random images are compared with those of the file itself.

    Raises:
        ExportError: the file is not what is taken; says what it has, what is expected, and how to mend it.
        VerificationError: the rewritten graph answers otherwise than the file.
    """
    file = Path(path)
    model = read_foreign(file, custom_domains)
    graph = model.graph
    images, batch, shape = _image_input(graph, file, input_shape)
    normalisation = statistics(mean, std, shape[0])
    logits = _chosen_output(model, file, output)
    _prune(model, file, logits, images)
    model = _converted(model, file)
    graph = model.graph
    strip(model)
    rename(graph, {images: "images", logits: "logits"})
    set_type(graph.input[0], ["batch", *shape])
    set_type(graph.output[0], None)
    if normalisation is not None:
        normalise(graph, *normalisation)
    ask = foreign_reference(file, output=output, mean=mean, std=std, input_shape=input_shape)
    num_classes = _try(model, file, ask, batch, shape)
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
    inputs, outputs = real_inputs(model.graph), [one.name for one in model.graph.output]
    source: str | bytes = os.fspath(file)
    if output is not None and output not in outputs:  # a tensor inside: the file has to be told to give it
        inner = read_foreign(file, {entry.domain for entry in model.opset_import})
        _add_output(inner, file, output)
        source = inner.SerializeToString()
    images, batch, shape = _image_input(model.graph, file, input_shape)
    asked = output or outputs[0]
    normalisation = statistics(mean, std, shape[0])
    session = _session(source, file)
    assert [one.name for one in inputs] == [images], "there is one input"

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
            if not isinstance(given, np.ndarray) or given.dtype != np.float32:
                kind = f"a tensor of {given.dtype}" if isinstance(given, np.ndarray) else f"no tensor but a {type(given).__name__}"
                raise ExportError(f"{file}: the output '{asked}' is {kind}, expected float32: export the network so that it gives float32")
            if given.ndim != 2 or len(given) != size:
                raise ExportError(_wrong_output(file, asked, given.shape, size))
            answers.append(given[: len(part)])
        return np.concatenate(answers)

    return answer


def foreign_interface(model: onnx.ModelProto) -> tuple[tuple[int, int, int], int]:
    """What ``onnx_from_foreign`` returned takes and gives: (C, H, W) and the number of classes."""
    _, channels, height, width = (side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim)
    return (channels, height, width), model.graph.output[0].type.tensor_type.shape.dim[1].dim_value


def _image_input(
    graph: onnx.GraphProto, file: Path, input_shape: tuple[int, int, int] | None
) -> tuple[str, int | None, tuple[int, int, int]]:
    """The name of the image input, its batch where that is fixed, and (C, H, W)."""
    inputs = real_inputs(graph)
    if len(inputs) != 1:
        listed = ", ".join(f"'{one.name}'" for one in inputs) or "none"
        raise ExportError(f"{file} must have one input, the images, got {len(inputs)} ({listed}): export a network that takes images alone")
    entry = inputs[0]
    if not entry.type.HasField("tensor_type"):
        raise ExportError(f"{file}: the input '{entry.name}' is a {entry.type.WhichOneof('value') or 'value of no type'}, expected a tensor")
    tensor = entry.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ExportError(
            f"{file}: the input '{entry.name}' is {_type_name(tensor.elem_type)}, expected float32 in [0, 1]: export the network with float32 "
            "images (its first layer may convert them; what was meant for 0 to 255 can be had by mean=0, std=1/255)"
        )
    sides = [side.dim_value if side.HasField("dim_value") else None for side in tensor.shape.dim]
    told = "(" + ", ".join(str(one.dim_value) if one.HasField("dim_value") else one.dim_param or "?" for one in tensor.shape.dim) + ")"
    if len(sides) != 4:
        raise ExportError(f"{file}: the input '{entry.name}' has the shape {told}, expected 4 dimensions (N, C, H, W): export it so")
    colours = (1, 3, 4)
    if sides[3] in colours and sides[1] not in colours and (sides[2] != sides[3]):
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {told}, which looks like channels last (N, H, W, C), expected (N, C, H, W): "
            f"export it with channels first (tf2onnx: --inputs-as-nchw {entry.name})"
        )
    if input_shape is not None:
        if len(input_shape) != 3 or any(fixed is not None and fixed != given for fixed, given in zip(sides[1:], input_shape, strict=True)):
            raise ExportError(f"{file}: the input '{entry.name}' has the shape {told}, which does not agree with (C, H, W) = {input_shape}")
        sides[1:] = input_shape
    batch, channels, height, width = sides
    if channels is None or height is None or width is None:
        raise ExportError(f"{file}: the input '{entry.name}' has the shape {told}, which leaves C, H or W open: say which (C, H, W) it takes")
    if min(channels, height, width, 1 if batch is None else batch) < 1 or channels * height * width > _LARGEST_IMAGE:
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {told} with (C, H, W) = {(channels, height, width)}; each must be at least 1, and "
            f"an image has at most {_LARGEST_IMAGE} values"
        )
    return entry.name, batch, (channels, height, width)


def _chosen_output(model: onnx.ModelProto, file: Path, output: str | None) -> str:
    graph = model.graph
    names = [one.name for one in graph.output]
    listed = ", ".join(f"'{name}'" for name in names)
    if output is None:
        if len(names) != 1:
            raise ExportError(f"{file} has {len(names)} outputs ({listed}): name the one that holds the logits (--output)")
        before = probabilities_from(graph, names[0])
        if before is not None:
            raise ExportError(
                f"{file}: the output '{names[0]}' looks like probabilities (a Softmax or Sigmoid gives it), expected logits: take the tensor "
                f"before it (--output {before}), or name '{names[0]}' itself if its values are to be averaged as logits"
            )
        output = names[0]
    elif output not in names:
        _add_output(model, file, output)
    entry = next(one for one in graph.output if one.name == output)
    kind = entry.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise ExportError(f"{file}: the output '{output}' is a {kind}, expected a float32 tensor (N, K); outputs: {listed}")
    if entry.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
        raise ExportError(
            f"{file}: the output '{output}' is {_type_name(entry.type.tensor_type.elem_type)}, expected float32: export the network so that "
            f"it gives float32 logits; outputs: {listed}"
        )
    return output


def _add_output(model: onnx.ModelProto, file: Path, name: str) -> None:
    """Make a tensor inside the graph one of its outputs."""
    if name not in {made for node in model.graph.node for made in node.output if made}:
        listed = ", ".join(f"'{one.name}'" for one in model.graph.output)
        raise ExportError(f"{file} has no output '{name}', nor a tensor of that name; its outputs are {listed}")
    with translated("is not consistent in its shapes", file=file):
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    known = next((one for one in inferred if one.name == name), None)
    model.graph.output.append(known or helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _prune(model: onnx.ModelProto, file: Path, logits: str, images: str) -> None:
    keep_only(model.graph, logits)
    if images not in {name for node in model.graph.node for name in node.input}:
        raise ExportError(f"{file}: the output '{logits}' does not depend on the input '{images}': name another one (--output)")


def _converted(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """The model at our opset and IR version, with no domain that no node uses."""
    opset = opset_of(model, file)
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    if opset != OPSET:
        message = f"has opset {opset} and cannot be converted to {OPSET}; export it again with opset_version={OPSET}"
        with translated(message, file=file):
            model = onnx.version_converter.convert_version(model, OPSET)
        model.ir_version = IR_VERSION
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used and entry.domain not in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), *sorted(kept, key=lambda entry: entry.domain)])
    return model


def _try(model: onnx.ModelProto, file: Path, ask: Callable[[Array], Array], batch: int | None, shape: tuple[int, int, int]) -> int:
    """Run the rewritten graph at several batches, compare it with the file, and return the number of classes."""
    sample = np.random.default_rng(0).random((max(_TRIED_BATCHES), *shape), np.float32)
    expected = np.concatenate([ask(image[None]) for image in sample])
    num_classes = expected.shape[1]
    if num_classes < 2:
        raise ExportError(f"{file}: the output has the shape (N, {num_classes}), expected (N, K) with K of at least 2 classes")
    fixed = f"has a fixed batch of {batch}" if batch else "has a fixed batch inside, though its input does not say so"
    session = _session(model.SerializeToString(), file, f"{fixed}, and is not loaded with a free one: {_FREE_BATCH_MEND}")
    for size in dict.fromkeys([batch if batch in _TRIED_BATCHES else 1, *_TRIED_BATCHES]):
        with translated(f"{fixed}, and does not run on {size}: {_FREE_BATCH_MEND}", file=file):
            (got,) = session.run(["logits"], {"images": sample[:size]})
        if got.shape != (size, num_classes):
            raise ExportError(f"{file} {fixed}: it answers the shape {got.shape} to {size} images; {_FREE_BATCH_MEND}")
        scale = max(1.0, float(np.nan_to_num(np.abs(expected)).max()))
        if not np.allclose(got, expected[:size], rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
            difference = float(np.nan_to_num(np.abs(got - expected[:size])).max())
            raise VerificationError(
                f"{file}: {size} images at once are answered otherwise than one by one by the file itself (logits differ by {difference:.3g}): "
                "it mixes images of a batch, is random, or was not converted faithfully; export it in eval mode "
                f"with opset_version={OPSET} and a dynamic batch axis"
            )
    return num_classes


def _session(source: str | bytes, file: Path, message: str = "is not loaded by ONNX Runtime") -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what matters comes as an exception
    with translated(message, file=file):
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _wrong_output(file: Path, name: str, shape: tuple[int, ...], batch: int) -> str:
    told = ", ".join(["N" if shape and shape[0] == batch else str(side) if number == 0 else str(side) for number, side in enumerate(shape)])
    message = f"{file}: the output '{name}' has the shape ({told}) for N = {batch}, expected (N, K)"
    if len(shape) == 4 and shape[2:] == (1, 1):
        return f"{message}: put a Flatten behind the last layer before the export (torch.nn.Flatten())"
    if len(shape) == 4:
        return f"{message}: this is a map and no classification; pool and flatten it, or name another output (--output)"
    return f"{message}: name another output (--output), or export a network that gives one row of logits for each image"


def _type_name(elem_type: int) -> str:
    if elem_type not in TensorProto.DataType.values() or elem_type == TensorProto.UNDEFINED:
        return f"of an unknown type ({elem_type})"
    names = {TensorProto.DOUBLE: "float64 (double)", TensorProto.FLOAT16: "float16", TensorProto.STRING: "string"}
    return names.get(elem_type, TensorProto.DataType.Name(elem_type).lower())
