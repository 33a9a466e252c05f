"""What the converters of graphs share."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from ._errors import ExportError
from .foreign_file import graphs_of
from .foreign_graph import real_inputs, rename


def tidy_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no tensor's name is used twice, no constant is an input too, and nothing is declared that is not needed.

    What is left out are the shapes of values inside, and extents of -1, and of 0 except in the graph's input. ONNX Runtime (1.32) reads -1 as
    a free axis and ignores the 0 of an output, unless a body allocates by it; onnx's checker takes both for extents.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    inputs = real_inputs(copy.graph)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    for number, graph in enumerate(graphs_of(copy.graph)):
        for field in ("value_info", "quantization_annotation"):
            graph.ClearField(field)
        _free(graph.input, 1 if number else 0)
        _free(graph.output, 1)
    rename(copy.graph, {})
    return copy


def _free(entries: Iterable[onnx.ValueInfoProto], least: int) -> None:
    """Leave open every extent below `least`."""
    for entry in entries:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < least:
                dim.ClearField("dim_value")


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A `tidy_copy` whose every node has a name of its own: converters choose nodes by name.

    Raises:
        ExportError: the model holds functions, which converters do not look into.
    """
    if model.functions:
        functions = ", ".join(function.name for function in model.functions[:3])
        raise ExportError(
            f"the graph calls functions of its own ({functions}): inline them first, with onnx.inliner.inline_local_functions"
        )
    copy = tidy_copy(model)
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
    """The extents of an input or output; None where one is free: named, not given, or negative, as ONNX Runtime reads it."""
    dims = tensor.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)
