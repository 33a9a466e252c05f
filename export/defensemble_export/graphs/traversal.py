"""The parts of a graph, in the bodies of If, Loop and Scan too: nodes, tensors, names, who makes and reads what, and renaming by scopes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from .operators import is_standard


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs among a node's attributes."""
    return [inner for entry in node.attribute for inner in ([entry.g] if entry.HasField("g") else list(entry.graphs))]


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and those inside its nodes: bodies of If, Loop and Scan."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, those of a node's bodies before it."""
    for node in graph.node:
        for body in subgraphs(node):
            yield from nodes_of(body)
        yield node


def graphs_of_model(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return all graphs of a model, those inside its local functions too."""
    inner = [graph for function in model.functions for node in function.node for body in subgraphs(node) for graph in graphs_of(body)]
    return [*graphs_of(model.graph), *inner]


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: initialisers and attributes, in subgraphs and local functions too."""
    graphs = graphs_of_model(model)
    for graph in graphs:
        yield from graph.initializer
    nodes = [*(node for graph in graphs for node in graph.node), *(node for function in model.functions for node in function.node)]
    for node in nodes:
        for entry in node.attribute:
            yield from [entry.t] if entry.HasField("t") else entry.tensors
            for sparse in [entry.sparse_tensor] if entry.HasField("sparse_tensor") else entry.sparse_tensors:
                yield from (sparse.values, sparse.indices)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata of a model, by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller has to give; up to IR 3 initialisers were listed as inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [one for one in graph.input if one.name not in constants]


def shape_of(tensor: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the extents of an input or output; None where one is free: named, not given, or negative, as ONNX Runtime reads it."""
    dims = tensor.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the constants of one graph, by name: initialisers and the tensors of Constant nodes; not those of its bodies."""
    made = {
        node.output[0]: entry.t
        for node in graph.node
        if node.op_type == "Constant" and is_standard(node)
        for entry in node.attribute
        if entry.HasField("t")
    }
    return {tensor.name: tensor for tensor in graph.initializer} | made


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that makes each tensor of one graph; not of its bodies."""
    return {name: node for node in graph.node for name in node.output if name}


def read_by(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, and those that its bodies read or give without making them."""
    found = set(node.input)
    for body in subgraphs(node):
        read = {name for one in body.node for name in read_by(one)} | {one.name for one in body.output}
        made = {name for one in body.node for name in one.output} | {one.name for one in _entries(body)}
        found |= read - made
    return found - {""}


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Return every name of a tensor in `graph` and its subgraphs."""
    found: set[str] = set()
    for inner in graphs_of(graph):
        found.update(name for node in inner.node for name in (*node.input, *node.output))
        found.update(entry.name for entry in (*_entries(inner), *inner.output))
    return found - {""}


def unique_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, lengthened until it is not among `taken`."""
    while name in taken:
        name += "_"
    return name


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, each its own: afterwards no two have the same, whichever bodies they are in.

    A tensor that is not in `names` keeps its name, unless another one gets it, or it hides a tensor of the graph around its body.
    """
    given, used = set(names.values()), set()
    taken = names_of(graph) | given

    def name_of(old: str) -> str:
        new = names.get(old, old)
        if new in used or (old not in names and new in given):
            new = unique_name(f"{new}_inner", taken)
        used.add(new)
        taken.add(new)
        return new

    def rename_in(inner: onnx.GraphProto, outer: Mapping[str, str]) -> None:
        entries = _entries(inner)
        own = dict.fromkeys([*(entry.name for entry in entries), *(name for node in inner.node for name in node.output)])
        known = {**outer, "": "", **{name: name_of(name) for name in own if name}}
        for entry in (*entries, *inner.output, *inner.value_info):
            entry.name = known.get(entry.name, entry.name)
        for node in inner.node:
            node.input[:] = [known.get(name, name) for name in node.input]
            node.output[:] = [known[name] for name in node.output]
            for body in subgraphs(node):
                rename_in(body, known)

    rename_in(graph, {})


def redirect(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Make nodes, and bodies inside them, read other tensors, in a graph in which no name is used twice, as after `rename`."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in subgraphs(node):
            redirect(body.node, names)
            for entry in body.output:
                entry.name = names.get(entry.name, entry.name)


def replace(graph: onnx.GraphProto, field: str, entries: Iterable[Message]) -> None:
    """Replace all entries of a repeated field of `graph`; the new ones may be among the old ones."""
    copies = [type(one).FromString(one.SerializeToString()) for one in entries]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)


def _entries(graph: onnx.GraphProto) -> list[Any]:
    """Return what carries the names of a graph's inputs and constants."""
    sparse = [tensor for one in graph.sparse_initializer for tensor in (one.values, one.indices)]
    return [*graph.input, *graph.initializer, *sparse]
