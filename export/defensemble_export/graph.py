"""What the converters of graphs share."""

from __future__ import annotations

import onnx

from ._errors import ExportError


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose every node has a name of its own: converters choose nodes by name.

    Raises:
        ExportError: the model holds functions, which converters do not look into.
    """
    if model.functions:
        functions = ", ".join(function.name for function in model.functions[:3])
        raise ExportError(
            f"the graph calls functions of its own ({functions}): inline them first, with onnx.inliner.inline_local_functions"
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    taken = {node.name for node in copy.graph.node}
    seen: set[str] = set()
    for number, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            while (name := f"{node.op_type}_{number}") in taken:
                number += 1
            node.name = name
            taken.add(name)
        seen.add(node.name)
    return copy


def checked(converted: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return what a converter made of a graph, once onnx's checker has passed it with its types and order.

    Raises:
        ExportError: it has not.
    """
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph cannot be converted to {precision}: {error}; export it as fp32") from error
    return converted


def shape_of(tensor: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """The extents of an input or output; None where one is free."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.type.tensor_type.shape.dim)
