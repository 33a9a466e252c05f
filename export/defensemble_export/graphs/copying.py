"""Copy and clean graphs, for the converters."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError
from .loading import cpu_session, invalid_reason, translate_errors
from .operators import QUANTISE_OPERATORS, RANDOM
from .traversal import graphs_of, names_of, read_by, real_inputs, redirect, rename, replace, subgraphs, unique_name


def tidy_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which tensor names are unique, constants are not listed as inputs, and unneeded declarations are removed.

    Removed are the shapes of inner values, extents of -1, and extents of 0 except in the graph's input. ONNX Runtime (1.32) reads -1 as a
    free axis and ignores the 0 of an output, unless a body allocates by it; onnx's checker takes both literally.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    replace(copy.graph, "input", real_inputs(copy.graph))
    for number, graph in enumerate(graphs_of(copy.graph)):
        for field in ("value_info", "quantization_annotation"):
            graph.ClearField(field)
        free_extents(graph.input, 1 if number else 0)
        free_extents(graph.output, 1)
    rename(copy.graph, {})
    return copy


def free_extents(entries: Iterable[onnx.ValueInfoProto], least: int) -> None:
    """Clear every extent below `least`."""
    for entry in entries:
        for dim in entry.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < least:
                dim.ClearField("dim_value")


def named_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a `tidy_copy` whose nodes have unique names: converters select nodes by name, and do not look into functions."""
    if model.functions:
        functions = ", ".join(function.name for function in model.functions[:3])
        raise ExportError(f"the graph has local functions ({functions}): inline them first, with onnx.inliner.inline_local_functions")
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


def check_converted(converted: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """Return a converted graph if onnx's checker accepts it; otherwise raise an ExportError."""
    if reason := invalid_reason(converted):
        raise ExportError(f"the graph cannot be converted to {precision}: {reason}; export it as fp32")
    return converted


def make_initializers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes by initialisers, which can be converted. BOOL constants stay: a BOOL initialiser would count as a mask."""
    nodes = []
    for node in graph.node:
        tensor = None
        if node.op_type == "Constant" and node.attribute[0].name in ("value", "value_float", "value_floats"):
            value = helper.get_attribute_value(node.attribute[0])
            tensor = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.array(value, np.float32))
        if tensor is None or tensor.data_type == TensorProto.BOOL:
            nodes.append(node)
        else:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
    replace(graph, "node", nodes)


def fold_constants(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Replace tensors that nodes compute only from constants, such as a weight behind an Identity or a Reshape, by initialisers.

    Nodes and constants that are no longer read are removed. Quantised constants stay quantised.

    Args:
        model: A graph with unique names, as after `tidy_copy`.
        names: The tensors to replace, if they are constant.

    Raises:
        ExportError: ONNX Runtime cannot compute them.
    """
    graph = model.graph
    make_initializers(graph)
    constant = {tensor.name for tensor in graph.initializer}
    computed = []
    for node in graph.node:
        if node.op_type not in RANDOM | QUANTISE_OPERATORS and not subgraphs(node) and constant.issuperset(read_by(node)):
            constant.update(node.output)
            computed.append(node)
    folded = {name: unique_name(f"{name}_folded", names_of(graph)) for node in computed for name in node.output if name in names}
    if not folded:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for field in ("input", "output", "node"):
        probe.graph.ClearField(field)
    probe.graph.node.extend(computed)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in folded)
    with translate_errors("computes its weights in a way that ONNX Runtime cannot run; export it again", file="the graph"):
        values = cpu_session(probe.SerializeToString()).run(list(folded), {})
    redirect(graph.node, folded)
    read, nodes, unread = {entry.name for entry in graph.output}, [], set[str]()
    for node in reversed(graph.node):
        if not constant.issuperset(node.output) or read.intersection(node.output):
            nodes.append(node)
            read |= read_by(node)
        else:
            unread |= read_by(node)
    constants = [tensor for tensor in graph.initializer if tensor.name not in unread - read]
    constants += [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(folded.values(), values, strict=True)]
    replace(graph, "node", reversed(nodes))
    replace(graph, "initializer", constants)


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove metadata about the origin of a file, which can name folders and people, and shape notes of other tools."""
    for graph in graphs_of(model.graph):
        for entry in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")
        for node in graph.node:
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                for tensor in [attribute.t] if attribute.HasField("t") else attribute.tensors:
                    tensor.ClearField("doc_string")
        for field in ("value_info", "quantization_annotation"):
            graph.ClearField(field)
    for field in ("metadata_props", "training_info", "doc_string", "domain", "model_version", "producer_version", "configuration"):
        if field in model.DESCRIPTOR.fields_by_name:
            model.ClearField(field)
    model.producer_name = "defensemble"
