"""Put a program into a graph: one node of the operator, which is also a function of the graph with the plain nodes as its body."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from defensemble_ops import DOMAIN, OPERATOR
from defensemble_repository.onnx_metadata import IR_VERSION

from ...errors import ExportError
from ..operators import is_standard
from ..traversal import names_of, read_by, replace, unique_name
from .expressions import Shape
from .program import Program

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
    """Return the graph with plain nodes instead of mask-aware ones, under their names; the same model if it has none.

    Onnx's inliner would rename what the nodes compute, so that a converted graph would differ from that of the plain file.
    """
    if not is_mask_aware(model):
        return model
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    bodies = {function.overload: function for function in model.functions if (function.domain, function.name) == (DOMAIN, OPERATOR)}
    nodes: list[onnx.NodeProto] = []
    computed: set[str] = set()
    for node in model.graph.node:
        for inner in _body(bodies, node) if (node.domain, node.op_type) == (DOMAIN, OPERATOR) else [node]:
            # Nodes that the members of a fused graph share, or that the rest of a graph reads, are there more than once.
            if not computed.issuperset(inner.output):
                nodes.append(inner)
                computed.update(inner.output)
    replace(plain.graph, "node", nodes)
    boundary = {name for node in model.graph.node if node.domain == DOMAIN for name in node.output}
    replace(plain.graph, "value_info", [value for value in plain.graph.value_info if value.name not in boundary])
    for field, key in (("opset_import", "domain"), ("functions", "domain")):
        kept = [type(entry).FromString(entry.SerializeToString()) for entry in getattr(plain, field) if getattr(entry, key) != DOMAIN]
        plain.ClearField(field)
        getattr(plain, field).extend(kept)
    return plain


def _body(bodies: Mapping[str, onnx.FunctionProto], node: onnx.NodeProto) -> Sequence[onnx.NodeProto]:
    """Return the plain nodes of a mask-aware node."""
    function = bodies.get(node.overload)
    if function is None or list(function.input) != list(node.input) or list(function.output) != list(node.output):
        raise ExportError(
            f"the graph was changed by another tool: the function of its node '{node.name}' ({OPERATOR}) "
            f"{'is missing' if function is None else 'has other inputs and outputs'}; export the network again"
        )
    return list(function.node)
