"""Rewrites of a graph that keep what it computes: other names, a normalisation before it, what nobody needs taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError
from .reader import graphs_of, subgraphs

MEAN, STD = "normalize.mean", "normalize.std"


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to give; up to IR 3 initialisers were listed as inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [one for one in graph.input if one.name not in constants]


def keep_only(graph: onnx.GraphProto, output: str) -> None:
    """Take away outputs, nodes and initialisers that ``output`` does not need, and initialisers from the inputs."""
    inputs = real_inputs(graph)
    needed, kept = {output}, []
    for node in reversed(graph.node):  # sorted, as the checker has seen
        if needed & set(node.output):
            kept.append(node)
            needed |= read_by(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    outputs = [one for one in graph.output if one.name == output]
    copied: Sequence[Message]
    for field, copied in (("node", nodes), ("initializer", constants), ("input", inputs), ("output", outputs)):
        copies = [type(one).FromString(one.SerializeToString()) for one in copied]
        graph.ClearField(field)
        getattr(graph, field).extend(copies)


def read_by(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, and all that are in its bodies."""
    return {*node.input, *(name for body in subgraphs(node) for name in names_of(body))} - {""}


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, each its own: afterwards no two have the same, whichever bodies they are in.

    A tensor that is not in `names` keeps its name, unless another one gets it, or it hides a tensor of the graph around its body.
    """
    given, used = set(names.values()), set()
    taken = names_of(graph) | given

    def name_of(old: str) -> str:
        new = names.get(old, old)
        if new in used or (old not in names and new in given):
            new = fresh(f"{new}_inner", taken)
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
    """Let nodes, and bodies inside them, read other tensors, in a graph in which no name is used twice, as after `rename`."""
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in subgraphs(node):
            redirect(body.node, names)
            for entry in body.output:
                entry.name = names.get(entry.name, entry.name)


def names_of(graph: onnx.GraphProto) -> set[str]:
    """Every name of a tensor in ``graph`` and its subgraphs."""
    found: set[str] = set()
    for inner in graphs_of(graph):
        found.update(name for node in inner.node for name in (*node.input, *node.output))
        found.update(entry.name for entry in (*_entries(inner), *inner.output))
    return found - {""}


def _entries(graph: onnx.GraphProto) -> list[Any]:
    """What carries the names of a graph's inputs and constants."""
    sparse = [tensor for one in graph.sparse_initializer for tensor in (one.values, one.indices)]
    return [*graph.input, *graph.initializer, *sparse]


def fresh(name: str, taken: Collection[str]) -> str:
    """``name``, lengthened until it is not among ``taken``."""
    while name in taken:
        name += "_"
    return name


def statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """The mean and the standard deviation of a normalisation, float32 [C,1,1] or [1,1,1]; None where neither is given.

    Raises:
        ExportError: they are not 1 or ``channels`` finite numbers, or a deviation is not above 0.
    """
    if mean is None and std is None:
        return None
    arrays = []
    for what, given in (("mean", mean), ("std", std)):
        if given is not None and not all(isinstance(value, (int, float, np.number)) for value in _listed(given)):
            raise ExportError(f"{what} must be a sequence of 1 or {channels} numbers, got {given!r}")
    for what, values in (("mean", [0.0] if mean is None else list(mean)), ("std", [1.0] if std is None else list(std))):
        if len(values) not in (1, channels):
            raise ExportError(f"{what} must be 1 or {channels} numbers, one for each channel, got {len(values)}: {values}")
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32).reshape(-1, 1, 1)
        least = np.finfo(np.float32).tiny  # below it, a division overflows
        if not np.isfinite(array).all() or (what == "std" and not (array >= least).all()):
            raise ExportError(f"{what} must be finite{' and above 0' if what == 'std' else ''} in float32, got {values}")
        arrays.append(array)
    return arrays[0], arrays[1]


def _listed(values: object) -> list[object]:
    return list(values) if isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, str) and np.ndim(values) == 1 else [None]


def normalise(graph: onnx.GraphProto, mean: np.ndarray[Any, Any], std: np.ndarray[Any, Any]) -> None:
    """Put (images - mean) / std before the graph, whose only input is ``images``."""
    taken = names_of(graph)
    centred, normalised = fresh("normalize.centred", taken), fresh("normalize.images", taken)
    rename(graph, {"images": normalised} | {name: fresh(f"{name}_inner", taken) for name in (MEAN, STD) if name in taken})
    graph.initializer.extend([numpy_helper.from_array(mean, MEAN), numpy_helper.from_array(std, STD)])
    nodes_taken = {node.name for node in graph.node}  # ONNX Runtime refuses a graph that has a node's name twice
    nodes = [
        helper.make_node("Sub", ["images", MEAN], [centred], name=fresh("normalize.Sub", nodes_taken)),
        helper.make_node("Div", [centred, STD], [normalised], name=fresh("normalize.Div", nodes_taken)),
        *(onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.input[0].name = "images"


def free_reshapes(graph: onnx.GraphProto, batch: int) -> bool:
    """Let each Reshape to a constant shape that begins with ``batch`` take any batch; whether there was one.

    What a Reshape meant cannot be known from its numbers: the result has to be tried.
    """
    graphs = list(graphs_of(graph))  # after `rename`: no name is used twice
    nodes = [node for inner in graphs for node in inner.node]
    constants = {tensor.name: tensor for inner in graphs for tensor in inner.initializer}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    taken, found = names_of(graph), False
    for node in nodes:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        if target.shape[0] < 2 or target[0] != batch or 0 in target:
            continue
        target[0] = 0 if -1 in target else -1  # 0: as it comes
        for attribute in [one for one in node.attribute if one.name == "allowzero"]:
            node.attribute.remove(attribute)
        node.input[1] = fresh(f"{node.input[1]}_free", taken)
        taken.add(node.input[1])
        graph.initializer.append(numpy_helper.from_array(target, node.input[1]))
        found = True
    return found


def probabilities_from(graph: onnx.GraphProto, output: str) -> str | None:
    """The tensor before the Softmax or Sigmoid that ``output`` comes from, through nothing but changes of shape; None where none does."""
    made_by = {name: node for node in graph.node for name in node.output}
    while (node := made_by.get(output)) is not None and node.op_type in ("Identity", "Flatten", "Reshape", "Squeeze"):
        output = node.input[0]
    return node.input[0] if node is not None and node.domain in ("", "ai.onnx") and node.op_type in ("Softmax", "Sigmoid") else None


def strip(model: onnx.ModelProto) -> None:
    """Drop notes about who made the file, which can name folders and people, and what other tools may have noted of its shapes."""
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
    model.graph.name = "network"
    model.producer_name = "defensemble"


def set_type(entry: onnx.ValueInfoProto, shape: Sequence[int | str] | None) -> None:
    """Make a value a float32 tensor of ``shape``, or of one that is not known."""
    entry.CopyFrom(helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, shape))
