"""Check the interface of a foreign graph: one input of float32 images, and one row of logits per image."""

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
# Values of one image (4,700 x 4,700 in three colours) and of a fixed batch. Larger ones are a mistake, and running them would exhaust the
# memory first.
_MAX_IMAGE_VALUES, _MAX_BATCH_VALUES = 2**26, 2**28


def image_input(
    graph: onnx.GraphProto, file: Path, input_shape: tuple[int, int, int] | None
) -> tuple[str, int | None, tuple[int, int, int]]:
    """Return the name of the image input, its batch if that is fixed, and (C, H, W).

    Args:
        graph: The graph.
        file: Its file, for errors.
        input_shape: (C, H, W), if the graph leaves it open.

    Raises:
        ExportError: There is not exactly one float32 input (N, C, H, W).
    """
    inputs = real_inputs(graph)
    if len(inputs) != 1:
        listed = ", ".join(f"'{entry.name}'" for entry in inputs) or "none"
        raise ExportError(f"{file} must have one input, the images, got {len(inputs)} ({listed}): export a network that takes only images")
    entry = inputs[0]
    if not entry.type.HasField("tensor_type"):
        raise ExportError(
            f"{file}: the input '{entry.name}' is a {entry.type.WhichOneof('value') or 'value without a type'}, expected a float32 tensor: "
            "export a network that takes a tensor of images"
        )
    tensor = entry.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ExportError(
            f"{file}: the input '{entry.name}' is {type_name(tensor.elem_type)}, expected float32 in [0, 1]: export the network with "
            "float32 images (its first layer may convert them; for images in 0 to 255, normalise with mean=0, std=1/255)"
        )
    # ONNX Runtime reads every negative extent as free, and a tensor without a shape as one of any shape.
    sides = list(shape_of(entry))
    shape_text = (
        "(" + ", ".join(str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim) + ")"
    )
    if not tensor.HasField("shape"):
        sides, shape_text = [None] * 4, "(?, ?, ?, ?)"
    if 0 in sides:
        number = [other.name for other in graph.input].index(entry.name)
        clear = "; ".join(f"d[{axis}].Clear()" for axis, side in enumerate(sides) if side == 0)
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {shape_text}, expected extents of at least 1; ONNX Runtime does not read 0 as "
            f"free. To make these extents free, run: python -c \"import onnx; m = onnx.load('{file}'); "
            f"d = m.graph.input[{number}].type.tensor_type.shape.dim; {clear}; onnx.save(m, 'free.onnx')\""
        )
    if len(sides) != 4:
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {shape_text}, expected 4 dimensions (N, C, H, W): export it with those"
        )
    colours = (1, 3, 4)
    if sides[3] in colours and sides[1] not in colours and (sides[2] != sides[3]):
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {shape_text}, which looks like channels last, expected (N, C, H, W): "
            f"export it with channels first (tf2onnx: --inputs-as-nchw {entry.name})"
        )
    if input_shape is not None:
        if len(input_shape) != 3 or any(fixed is not None and fixed != side for fixed, side in zip(sides[1:], input_shape, strict=True)):
            raise ExportError(
                f"{file}: the input '{entry.name}' has the shape {shape_text}, which does not match (C, H, W) = {input_shape}: "
                "omit --input-shape, or correct it"
            )
        sides[1:] = input_shape
    batch, channels, height, width = sides
    if channels is None or height is None or width is None:
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {shape_text}, which leaves C, H or W open: set them (--input-shape C,H,W)"
        )
    values = channels * height * width
    if min(channels, height, width) < 1 or values > _MAX_IMAGE_VALUES or values * (batch or 1) > _MAX_BATCH_VALUES:
        raise ExportError(
            f"{file}: the input '{entry.name}' has the shape {shape_text} with (C, H, W) = {(channels, height, width)}; expected at "
            f"least 1 each, at most {_MAX_IMAGE_VALUES} values per image and {_MAX_BATCH_VALUES} per fixed batch: use smaller images"
        )
    return entry.name, batch, (channels, height, width)


def select_output(model: onnx.ModelProto, file: Path, output: str | None) -> str:
    """Return the name of the tensor that becomes the logits, and make an inner tensor an output of the graph.

    Args:
        model: The model; it is changed if `output` is an inner tensor.
        file: Its file, for errors.
        output: The tensor to select. None: the only output, unless it looks like probabilities.

    Raises:
        ExportError: There is no such tensor, its type is not float32, or None is ambiguous.
    """
    graph = model.graph
    names = [entry.name for entry in graph.output]
    listed = ", ".join(f"'{name}'" for name in names)
    if output is None:
        if len(names) != 1:
            raise ExportError(f"{file} has {len(names)} outputs ({listed}), expected one: name the one with the logits (--output)")
        before = softmax_input(graph, names[0])
        if before is not None:
            if _values_per_image(model, file, names[0]) == 1:
                raise ExportError(one_class_message(file, names[0], 1))
            raise ExportError(
                f"{file}: the output '{names[0]}' looks like probabilities (a Softmax or Sigmoid computes it), expected logits: select the "
                f"tensor before it (--output {before}), or select '{names[0]}' itself to average its values as logits"
            )
        output = names[0]
    elif output not in names:
        add_output(model, file, output)
    entry = next(entry for entry in graph.output if entry.name == output)
    kind = entry.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise ExportError(f"{file}: the output '{output}' is a {kind}, expected a float32 tensor (N, K); outputs: {listed}")
    if entry.type.tensor_type.elem_type not in (TensorProto.UNDEFINED, TensorProto.FLOAT):
        raise ExportError(
            f"{file}: the output '{output}' is {type_name(entry.type.tensor_type.elem_type)}, expected float32: export the network with "
            f"float32 logits; outputs: {listed}"
        )
    return output


def add_output(model: onnx.ModelProto, file: Path, name: str) -> None:
    """Make an inner tensor an output of the graph."""
    if name not in {output for node in model.graph.node for output in node.output if output}:
        listed = ", ".join(f"'{entry.name}'" for entry in model.graph.output)
        raise ExportError(f"{file} has no output or inner tensor '{name}': name one of its outputs, {listed}")
    model.graph.output.append(_infer_type(model, file, name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _infer_type(model: onnx.ModelProto, file: Path, name: str) -> onnx.ValueInfoProto | None:
    with translate_errors("is not consistent in its shapes", file=file):
        graph = onnx.shape_inference.infer_shapes(model).graph
    return next((entry for entry in (*graph.value_info, *graph.output) if entry.name == name), None)


def _values_per_image(model: onnx.ModelProto, file: Path, name: str) -> int | None:
    """Return how many values an output has per image; None if its shape is unknown."""
    entry = _infer_type(model, file, name)
    extents = [] if entry is None else [extent.dim_value for extent in entry.type.tensor_type.shape.dim[1:]]
    return math.prod(extents) or None if extents else None


def one_class_message(file: Path, name: str, num_classes: int) -> str:
    """Return the message about an output with fewer than 2 values per image."""
    return (
        f"{file}: the output '{name}' has the shape (N, {num_classes}), expected (N, K): one value for each of K classes, at least 2. A "
        "network that separates two classes by the sigmoid of one value z is equivalent to one with the two logits 0 and z: replace the "
        "sigmoid by such a layer (torch: torch.cat([torch.zeros_like(z), z], 1)), and export that"
    )


def as_rows(outputs: Array) -> Array:
    """Reshape outputs with further axes of extent 1, such as (N, K, 1, 1), to (N, K); return others unchanged."""
    is_row = outputs.ndim > 2 and sum(side != 1 for side in outputs.shape[1:]) <= 1
    return outputs.reshape(len(outputs), -1) if is_row else outputs


def check_weights(graph: onnx.GraphProto, file: Path) -> None:
    """Raise an ExportError that names the weights that are NaN."""
    if names := _weights_containing(graph, np.isnan):
        raise ExportError(
            f"{file}: the weights {_format_names(names)} NaN: export the network again, from a checkpoint with finite weights"
        )


def check_finite(outputs: Array, graph: onnx.GraphProto, file: Path) -> None:
    """Raise an ExportError if outputs of the original file are not finite; the message contains the cause, if it is visible."""
    if np.isfinite(outputs).all():
        return
    value, names = "NaN" if np.isnan(outputs).any() else "infinite values", _weights_containing(graph, np.isinf)
    cause = f"{_format_names(names)} infinite values" if names else "its weights are finite, so a computation overflows or is undefined"
    raise ExportError(
        f"{file} itself returns {value} for random images in [0, 1], in ONNX Runtime: {cause}. "
        "Export the network again, in float32 and from finite weights; for images of another range, pass --mean and --std"
    )


def _weights_containing(graph: onnx.GraphProto, condition: Callable[[Array], Array]) -> list[str]:
    """Return the names of the float weights, of at least two values, for which `condition` is true somewhere."""
    tensors = []
    for inner in graphs_of(graph):
        tensors += [(tensor.name, tensor) for tensor in inner.initializer]
        tensors += [(node.output[0], entry.t) for node in inner.node for entry in node.attribute if entry.HasField("t")]
    weights = [(name, numpy_helper.to_array(tensor)) for name, tensor in tensors if tensor.data_type in _FLOATS]
    return [name for name, values in weights if values.size > 1 and condition(values).any()]


def _format_names(names: Sequence[str]) -> str:
    return f"{', '.join(repr(name) for name in names[:3])}{', ...' if len(names) > 3 else ''} contain{'s' if len(names) == 1 else ''}"


def type_name(elem_type: int) -> str:
    """Return the usual name of an ONNX element type, such as "float32"."""
    if elem_type not in TensorProto.DataType.values() or elem_type == TensorProto.UNDEFINED:
        return f"of an unknown type ({elem_type})"
    name: str = helper.tensor_dtype_to_string(elem_type).rpartition(".")[2].lower()
    return {"double": "float64 (double)"}.get(name, name)


def wrong_output_message(file: Path, name: str, shape: tuple[int, ...], batch: int) -> str:
    """Return the message about an output of the wrong `shape` for `batch` images."""
    message = f"{file}: the output '{name}' has the shape {shape} for {batch} image{'s' if batch > 1 else ''}, expected (N, K)"
    if len(shape) == 4:
        return f"{message}: this is a feature map and not a classification; pool and flatten it, or name another output (--output)"
    return f"{message}: name another output (--output), or export a network with one row of logits per image"
