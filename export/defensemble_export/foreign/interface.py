"""What somebody else's graph takes and gives: one batch of float32 images, and one row of logits for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError
from ..graphs.loading import translate_errors
from ..graphs.traversal import graphs_of, real_inputs, shape_of
from .rewrite import softmax_input

Array = np.ndarray[Any, Any]
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Values of one image (4,700 x 4,700 in three colours) and of a batch that is fixed. What asks for more is a mistake, and trying it would
# end the memory first.
_LARGEST_IMAGE, _LARGEST_BATCH = 2**26, 2**28


def image_input(
    graph: onnx.GraphProto, file: Path, input_shape: tuple[int, int, int] | None
) -> tuple[str, int | None, tuple[int, int, int]]:
    """The name of the image input, its batch where that is fixed, and (C, H, W); ExportError where there is not one such input."""
    inputs = real_inputs(graph)
    if len(inputs) != 1:
        listed = ", ".join(f"'{one.name}'" for one in inputs) or "none"
        raise ExportError(f"{file} must have one input, the images, got {len(inputs)} ({listed}): export a network that takes images alone")
    entry = inputs[0]
    if not entry.type.HasField("tensor_type"):
        raise ExportError(
            f"{file}: the input '{entry.name}' is a {entry.type.WhichOneof('value') or 'value of no type'}, expected a tensor"
        )
    tensor = entry.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ExportError(
            f"{file}: the input '{entry.name}' is {type_name(tensor.elem_type)}, expected float32 in [0, 1]: export the network with "
            "float32 images (its first layer may convert them; what was meant for 0 to 255 can be had by mean=0, std=1/255)"
        )
    # ONNX Runtime takes every negative number as free, and a tensor without a shape as one of any shape.
    sides = list(shape_of(entry))
    told = "(" + ", ".join(str(one.dim_value) if one.HasField("dim_value") else one.dim_param or "?" for one in tensor.shape.dim) + ")"
    if not tensor.HasField("shape"):
        sides, told = [None] * 4, "(?, ?, ?, ?)"
    if 0 in sides:
        number = [one.name for one in graph.input].index(entry.name)
        clear = "; ".join(f"d[{axis}].Clear()" for axis, side in enumerate(sides) if side == 0)
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {told}; each extent must be at least 1, and ONNX Runtime takes 0 as no image "
            f"at all and not as free. If free is meant, save the file so: python -c \"import onnx; m = onnx.load('{file}'); "
            f"d = m.graph.input[{number}].type.tensor_type.shape.dim; {clear}; onnx.save(m, 'free.onnx')\""
        )
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
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {told}, which leaves C, H or W open: say which it takes (--input-shape C,H,W)"
        )
    values = channels * height * width
    if min(channels, height, width) < 1 or values > _LARGEST_IMAGE or values * (batch or 1) > _LARGEST_BATCH:
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {told} with (C, H, W) = {(channels, height, width)}; each must be at least 1, "
            f"an image has at most {_LARGEST_IMAGE} values and a fixed batch {_LARGEST_BATCH}: export a network of smaller images"
        )
    return entry.name, batch, (channels, height, width)


def select_output(model: onnx.ModelProto, file: Path, output: str | None) -> str:
    """The name of the tensor that becomes the logits; one inside the graph is made an output of it, probabilities are refused."""
    graph = model.graph
    names = [one.name for one in graph.output]
    listed = ", ".join(f"'{name}'" for name in names)
    if output is None:
        if len(names) != 1:
            raise ExportError(f"{file} has {len(names)} outputs ({listed}): name the one that holds the logits (--output)")
        before = softmax_input(graph, names[0])
        if before is not None:
            if _values_of_a_row(model, file, names[0]) == 1:
                raise ExportError(one_class_message(file, names[0], 1))
            raise ExportError(
                f"{file}: the output '{names[0]}' looks like probabilities (a Softmax or Sigmoid gives it), expected logits: take the "
                f"tensor before it (--output {before}), or name '{names[0]}' itself if its values are to be averaged as logits"
            )
        output = names[0]
    elif output not in names:
        add_output(model, file, output)
    entry = next(one for one in graph.output if one.name == output)
    kind = entry.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise ExportError(f"{file}: the output '{output}' is a {kind}, expected a float32 tensor (N, K); outputs: {listed}")
    if entry.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
        raise ExportError(
            f"{file}: the output '{output}' is {type_name(entry.type.tensor_type.elem_type)}, expected float32: export the network so that "
            f"it gives float32 logits; outputs: {listed}"
        )
    return output


def add_output(model: onnx.ModelProto, file: Path, name: str) -> None:
    """Make a tensor inside the graph one of its outputs."""
    if name not in {made for node in model.graph.node for made in node.output if made}:
        listed = ", ".join(f"'{one.name}'" for one in model.graph.output)
        raise ExportError(f"{file} has no output '{name}', nor a tensor of that name; its outputs are {listed}")
    model.graph.output.append(_inferred(model, file, name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _inferred(model: onnx.ModelProto, file: Path, name: str) -> onnx.ValueInfoProto | None:
    with translate_errors("is not consistent in its shapes", file=file):
        graph = onnx.shape_inference.infer_shapes(model).graph
    return next((one for one in (*graph.value_info, *graph.output) if one.name == name), None)


def _values_of_a_row(model: onnx.ModelProto, file: Path, name: str) -> int | None:
    """How many values an output has for an image; None where its shape is not known."""
    entry = _inferred(model, file, name)
    extents = [] if entry is None else [extent.dim_value for extent in entry.type.tensor_type.shape.dim[1:]]
    return math.prod(extents) or None if extents else None


def one_class_message(file: Path, name: str, num_classes: int) -> str:
    """The message that refuses an output of fewer than 2 values for an image."""
    return (
        f"{file}: the output '{name}' has the shape (N, {num_classes}), expected (N, K): one value for each of K classes, at least 2. A "
        "network that tells two classes apart by the sigmoid of one value z answers the same with two logits, 0 and z: put such a layer "
        "behind it, without the sigmoid (torch: torch.cat([torch.zeros_like(z), z], 1)), and export that"
    )


def as_rows(answers: Array) -> Array:
    """Answers (N, K) of those that have axes of one value too, such as (N, K, 1, 1); others as they are."""
    is_row = answers.ndim > 2 and sum(side != 1 for side in answers.shape[1:]) <= 1
    return answers.reshape(len(answers), -1) if is_row else answers


def check_weights(graph: onnx.GraphProto, file: Path) -> None:
    """Refuse weights that are NaN, by name."""
    if names := _holding(graph, np.isnan):
        raise ExportError(
            f"{file}: {_listed(names)} NaN among the weights: export the network again, from a checkpoint whose weights are finite"
        )


def check_finite(answers: Array, graph: onnx.GraphProto, file: Path) -> None:
    """Refuse answers of the file itself that are not finite; the message gives the reason where it can be seen."""
    if np.isfinite(answers).all():
        return
    what, names = "NaN" if np.isnan(answers).any() else "infinite values", _holding(graph, np.isinf)
    cause = f"{_listed(names)} infinite values" if names else "its weights are finite, so that what they compute overflows or is undefined"
    raise ExportError(
        f"{file} itself answers {what} for random images in [0, 1], in ONNX Runtime: {cause}. "
        "Export the network again, in float32 and from finite weights; images of another range are had by --mean and --std"
    )


def _holding(graph: onnx.GraphProto, what: Callable[[Array], Array]) -> list[str]:
    """Names of the float weights, of two values and more, that hold `what`."""
    held = []
    for inner in graphs_of(graph):
        held += [(tensor.name, tensor) for tensor in inner.initializer]
        held += [(node.output[0], entry.t) for node in inner.node for entry in node.attribute if entry.HasField("t")]
    weights = [(name, numpy_helper.to_array(tensor)) for name, tensor in held if tensor.data_type in _FLOATS]
    return [name for name, values in weights if values.size > 1 and what(values).any()]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:3])}{', ...' if len(names) > 3 else ''} hold{'s' if len(names) == 1 else ''}"


def type_name(elem_type: int) -> str:
    """What a reader calls an element type of ONNX."""
    if elem_type not in TensorProto.DataType.values() or elem_type == TensorProto.UNDEFINED:
        return f"of an unknown type ({elem_type})"
    name: str = helper.tensor_dtype_to_string(elem_type).rpartition(".")[2].lower()
    return {"double": "float64 (double)"}.get(name, name)


def wrong_output_message(file: Path, name: str, shape: tuple[int, ...], batch: int) -> str:
    """The message that refuses an output of `shape`, given for `batch` images."""
    message = f"{file}: the output '{name}' has the shape {shape} for {batch} image{'s' if batch > 1 else ''}, expected (N, K)"
    if len(shape) == 4:
        return f"{message}: this is a map and no classification; pool and flatten it, or name another output (--output)"
    return f"{message}: name another output (--output), or export a network that gives one row of logits for each image"
