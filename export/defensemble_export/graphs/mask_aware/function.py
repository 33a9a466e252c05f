"""Put a program into a graph: one node of the operator, which is also a function of the graph with the plain nodes as its body."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx
import onnx.inliner
from onnx import TensorProto, helper

from defensemble_repository.onnx_metadata import IR_VERSION

from ..operators import is_standard
from ..traversal import names_of, read_by, replace, unique_name
from .expressions import Shape
from .program import Program

DOMAIN = "defensemble"
OPERATOR = "MaskedNetwork_v1"
VERSION = 1


@dataclass(frozen=True)
class Region:
    """The nodes that one program computes.

    Attributes:
        nodes: Their positions in the graph, in order.
        outputs: The tensors that the rest of the graph reads.
        shapes: (C,H,W) of the outputs.
        program: The program.
        overload: Which function: the member of a fused graph; empty in a graph of one network.
    """

    nodes: tuple[int, ...]
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    program: Program
    overload: str = ""


def node_inputs(graph: onnx.GraphProto, nodes: Collection[int], images: str) -> tuple[str, ...]:
    """Return the inputs of the node that computes `nodes`: the images, then the constants that they read, in order of their first use."""
    computed = {name for position in nodes for name in graph.node[position].output}
    read = dict.fromkeys(name for position in sorted(nodes) for name in graph.node[position].input if name and name not in computed)
    return (images, *(name for name in read if name != images))


def with_programs(model: onnx.ModelProto, regions: Sequence[Region]) -> onnx.ModelProto:
    """Return a copy of `model` in which one node for each region computes its nodes, unless the rest of the graph still reads them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    replaced = {position for region in regions for position in region.nodes}
    given = {name for region in regions for name in region.outputs}
    wanted = {output.name for output in graph.output} - given
    rest = []
    for position in reversed(range(len(model.graph.node))):
        node = model.graph.node[position]
        if position not in replaced or wanted.intersection(node.output):
            rest.append(node)
            wanted |= read_by(node) - given
    rest.reverse()
    # Constants come first: the new nodes read them.
    is_constant = [node.op_type == "Constant" and is_standard(node) for node in rest]
    new = [_node(region, model, number) for number, region in enumerate(regions)]
    ordered = [
        *(node for node, constant in zip(rest, is_constant, strict=True) if constant),
        *new,
        *(node for node, constant in zip(rest, is_constant, strict=True) if not constant),
    ]
    replace(graph, "node", ordered)
    remaining = {name for node in rest for name in node.output}
    _describe(model, graph, regions, remaining)
    imports = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    for region in regions:
        body = [model.graph.node[position] for position in region.nodes]
        inputs = list(region.program.inputs)
        function = helper.make_function(DOMAIN, OPERATOR, inputs, list(region.outputs), body, imports, overload=region.overload)
        result.functions.append(function)
    result.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    result.ir_version = max(result.ir_version, IR_VERSION)  # older ones have no functions, or no overloads
    return result


def _node(region: Region, model: onnx.ModelProto, number: int) -> onnx.NodeProto:
    taken = names_of(model.graph) | {node.name for node in model.graph.node}
    name = unique_name(f"{region.overload}/mask_aware" if region.overload else "mask_aware", taken)
    node = helper.make_node(
        OPERATOR,
        list(region.program.inputs),
        list(region.outputs),
        name=name,
        domain=DOMAIN,
        overload=region.overload,
        program=region.program.text(),
    )
    return node


def _describe(model: onnx.ModelProto, graph: onnx.GraphProto, regions: Sequence[Region], remaining: Collection[str]) -> None:
    """Keep the declared shapes of tensors that still exist, and declare those of the regions' outputs."""
    outputs = {name: shape for region in regions for name, shape in zip(region.outputs, region.shapes, strict=True)}
    finals = {output.name for output in graph.output}
    kept = [value for value in graph.value_info if value.name in remaining and value.name not in outputs]
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    for name, shape in outputs.items():
        if name not in finals:
            value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, *shape])
            value.type.tensor_type.shape.dim[0].CopyFrom(batch)
            kept.append(value)
    replace(graph, "value_info", kept)


def is_mask_aware(model: onnx.ModelProto) -> bool:
    """Return whether a graph has a node of the mask-aware operator."""
    return any(node.domain == DOMAIN and node.op_type == OPERATOR for node in model.graph.node)


def plain_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with the plain nodes instead of mask-aware ones; the same model if it has none."""
    if not is_mask_aware(model):
        return model
    plain: onnx.ModelProto = onnx.inliner.inline_selected_functions(model, _functions(model), exclude=False)
    imports = [entry for entry in plain.opset_import if entry.domain != DOMAIN]
    copies = [onnx.OperatorSetIdProto.FromString(entry.SerializeToString()) for entry in imports]
    plain.ClearField("opset_import")
    plain.opset_import.extend(copies)
    return plain


def _functions(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return sorted({(function.domain, function.name) for function in model.functions if function.domain == DOMAIN})
