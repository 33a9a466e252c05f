"""Rewrite graphs: remove unused parts, prepend a normalisation, and free a fixed batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError
from ..graphs.operators import is_standard
from ..graphs.traversal import constants_of, graphs_of, names_of, producers_of, read_by, real_inputs, rename, replace, unique_name

MEAN, STD = "normalize.mean", "normalize.std"


def keep_only(graph: onnx.GraphProto, output: str) -> None:
    """Remove outputs, nodes and initialisers that `output` does not need, and initialisers from the inputs."""
    inputs = real_inputs(graph)
    needed, kept = {output}, []
    for node in reversed(graph.node):  # the nodes are sorted: the checker has passed
        if needed & set(node.output):
            kept.append(node)
            needed |= read_by(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    outputs = [entry for entry in graph.output if entry.name == output]
    fields: dict[str, Iterable[Message]] = {"node": reversed(kept), "initializer": constants, "input": inputs, "output": outputs}
    for field, entries in fields.items():
        replace(graph, field, entries)


def normalisation_arrays(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return the mean and standard deviation as float32 [C,1,1] or [1,1,1]; None if both are None.

    Args:
        mean: 1 or `channels` finite numbers. None: 0.
        std: 1 or `channels` finite numbers above 0. None: 1.
        channels: Number of channels.

    Raises:
        ExportError: The numbers are not valid.
    """
    if mean is None and std is None:
        return None
    arrays = []
    for name, argument in (("mean", mean), ("std", std)):
        if argument is not None and not all(isinstance(value, (int, float, np.number)) for value in _to_list(argument)):
            raise ExportError(f"{name} must be a sequence of 1 or {channels} numbers, got {argument!r}")
    for name, values in (("mean", [0.0] if mean is None else list(mean)), ("std", [1.0] if std is None else list(std))):
        if len(values) not in (1, channels):
            raise ExportError(f"{name} must be 1 or {channels} numbers, one per channel, got {len(values)}: {values}")
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32).reshape(-1, 1, 1)
        smallest = np.finfo(np.float32).tiny  # dividing by less overflows
        if not np.isfinite(array).all() or (name == "std" and not (array >= smallest).all()):
            raise ExportError(f"{name} must be finite{' and above 0' if name == 'std' else ''} in float32, got {values}")
        arrays.append(array)
    return arrays[0], arrays[1]


def _to_list(values: object) -> list[object]:
    return list(values) if isinstance(values, (Sequence, np.ndarray)) and not isinstance(values, str) and np.ndim(values) == 1 else [None]


def normalise(graph: onnx.GraphProto, mean: np.ndarray[Any, Any], std: np.ndarray[Any, Any]) -> None:
    """Prepend (images - mean) / std to a graph whose only input is `images`."""
    taken = names_of(graph)
    centred, normalised = unique_name("normalize.centred", taken), unique_name("normalize.images", taken)
    rename(graph, {"images": normalised} | {name: unique_name(f"{name}_inner", taken) for name in (MEAN, STD) if name in taken})
    graph.initializer.extend([numpy_helper.from_array(mean, MEAN), numpy_helper.from_array(std, STD)])
    nodes_taken = {node.name for node in graph.node}  # ONNX Runtime rejects duplicate node names
    nodes = [
        helper.make_node("Sub", ["images", MEAN], [centred], name=unique_name("normalize.Sub", nodes_taken)),
        helper.make_node("Div", [centred, STD], [normalised], name=unique_name("normalize.Div", nodes_taken)),
        *graph.node,
    ]
    replace(graph, "node", nodes)
    graph.input[0].name = "images"


def free_reshapes(graph: onnx.GraphProto, batch: int) -> bool:
    """Make every Reshape to a constant shape that begins with `batch` accept any batch; return whether there was one.

    The numbers do not show what a Reshape means, so the result must be compared with the original.
    """
    graphs = list(graphs_of(graph))  # names are unique after `rename`
    nodes = [node for inner in graphs for node in inner.node]
    constants = {name: tensor for inner in graphs for name, tensor in constants_of(inner).items()}
    taken, is_changed = names_of(graph), False
    for node in nodes:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        if target.shape[0] < 2 or target[0] != batch or 0 in target:
            continue
        target[0] = 0 if -1 in target else -1  # 0 copies the input's extent
        for attribute in [attribute for attribute in node.attribute if attribute.name == "allowzero"]:
            node.attribute.remove(attribute)
        node.input[1] = unique_name(f"{node.input[1]}_free", taken)
        taken.add(node.input[1])
        graph.initializer.append(numpy_helper.from_array(target, node.input[1]))
        is_changed = True
    return is_changed


def softmax_input(graph: onnx.GraphProto, output: str) -> str | None:
    """Return the input of the Softmax or Sigmoid that computes `output`, possibly through changes of shape; None if there is none."""
    producers = producers_of(graph)
    while (node := producers.get(output)) is not None and node.op_type in ("Identity", "Flatten", "Reshape", "Squeeze"):
        output = node.input[0]
    return node.input[0] if node is not None and is_standard(node) and node.op_type in ("Softmax", "Sigmoid") else None


def set_type(entry: onnx.ValueInfoProto, shape: Sequence[int | str] | None) -> None:
    """Make a value a float32 tensor of `shape`; None: of unknown shape."""
    entry.CopyFrom(helper.make_tensor_value_info(entry.name, TensorProto.FLOAT, shape))
