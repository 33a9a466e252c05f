"""Traverse and rename the parts of a graph, including the bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import TensorProto

from .operators import is_standard


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs in a node's attributes."""
    return [inner for entry in node.attribute for inner in ([entry.g] if entry.HasField("g") else list(entry.graphs))]


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and all graphs inside its nodes: the bodies of If, Loop and Scan."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs_of(inner)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node; the nodes of a node's bodies come before it."""
    for node in graph.node:
        for body in subgraphs(node):
            yield from nodes_of(body)
        yield node


def graphs_of_model(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """Return all graphs of a model, including those in its local functions."""
    inner = [graph for function in model.functions for node in function.node for body in subgraphs(node) for graph in graphs_of(body)]
    return [*graphs_of(model.graph), *inner]


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model: initialisers and attributes, including subgraphs and local functions."""
    graphs = graphs_of_model(model)
    for graph in graphs:
        yield from graph.initializer
    nodes = [*(node for graph in graphs for node in graph.node), *(node for function in model.functions for node in function.node)]
    for node in nodes:
        yield from attribute_tensors(node)


def attribute_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    """Yield the tensors in a node's attributes, such as the value of a Constant."""
    for entry in node.attribute:
        yield from [entry.t] if entry.HasField("t") else entry.tensors
        for sparse in [entry.sparse_tensor] if entry.HasField("sparse_tensor") else entry.sparse_tensors:
            yield from (sparse.values, sparse.indices)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """Return the metadata of a model, by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must provide. Up to IR 3, initialisers are listed as inputs, too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [entry for entry in graph.input if entry.name not in constants]


def shape_of(tensor: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the extents of an input or output; None for a free one: named, missing, or negative, which ONNX Runtime reads as free."""
    dims = tensor.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)


def constants_of(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """Return the constants of a graph, by name: initialisers and the tensors of Constant nodes. Bodies are not included."""
    nodes = {
        node.output[0]: entry.t
        for node in graph.node
        if node.op_type == "Constant" and is_standard(node)
        for entry in node.attribute
        if entry.HasField("t")
    }
    return {tensor.name: tensor for tensor in graph.initializer} | nodes


def producers_of(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node that computes each tensor of a graph, by name. Bodies are not included."""
    return {name: node for node in graph.node for name in node.output if name}


def read_by(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, including those that its bodies read or return from the graph around them."""
    names = set(node.input)
    for body in subgraphs(node):
        read = {name for inner in body.node for name in read_by(inner)} | {output.name for output in body.output}
        local = {name for inner in body.node for name in inner.output} | {entry.name for entry in _entries(body)}
        names |= read - local
    return names - {""}


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors in `graph` and its subgraphs."""
    names: set[str] = set()
    for inner in graphs_of(graph):
        names.update(name for node in inner.node for name in (*node.input, *node.output))
        names.update(entry.name for entry in (*_entries(inner), *inner.output))
    return names - {""}


def unique_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, with underscores appended until it is not in `taken`."""
    while name in taken:
        name += "_"
    return name


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors so that all names are unique, across bodies too.

    A tensor that is not in `names` keeps its name, unless another tensor gets it or it hides a tensor of the graph around its body.

    Args:
        graph: The graph to change.
        names: Old name to new name.
    """
    targets, used = set(names.values()), set()
    taken = names_of(graph) | targets

    def new_name(old: str) -> str:
        new = names.get(old, old)
        if new in used or (old not in names and new in targets):
            new = unique_name(f"{new}_inner", taken)
        used.add(new)
        taken.add(new)
        return new

    def rename_in(inner: onnx.GraphProto, outer: Mapping[str, str]) -> None:
        entries = _entries(inner)
        own = dict.fromkeys([*(entry.name for entry in entries), *(name for node in inner.node for name in node.output)])
        scope = {**outer, "": "", **{name: new_name(name) for name in own if name}}
        for entry in (*entries, *inner.output, *inner.value_info):
            entry.name = scope.get(entry.name, entry.name)
        for node in inner.node:
            node.input[:] = [scope.get(name, name) for name in node.input]
            node.output[:] = [scope[name] for name in node.output]
            for body in subgraphs(node):
                rename_in(body, scope)

    rename_in(graph, {})


def redirect(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Make nodes and their bodies read other tensors. Names must be unique in the graph, as after `rename`."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in subgraphs(node):
            redirect(body.node, names)
            for entry in body.output:
                entry.name = names.get(entry.name, entry.name)


def replace(graph: onnx.GraphProto, field: str, entries: Iterable[Message]) -> None:
    """Replace all entries of a repeated field of `graph`; the new entries may include old ones."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)


def _entries(graph: onnx.GraphProto) -> list[Any]:
    """Return the entries that name a graph's inputs and constants."""
    sparse = [tensor for initializer in graph.sparse_initializer for tensor in (initializer.values, initializer.indices)]
    return [*graph.input, *graph.initializer, *sparse]
