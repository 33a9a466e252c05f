"""Masks of whole channels: smaller dense convolutions in plain ONNX, which every runtime computes fast without the operator.

Weights, biases and masks stay in the file as they are. Gather nodes with constant inputs select the channels, and runtimes compute these
once, when they load the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ..traversal import names_of, read_by, replace, unique_name
from .costs import GAIN_BATCHES, dense_products, plain_time
from .expressions import FULL, NOTHING, BoolArray, MaskExpression
from .lowering import needed
from .operations import Network, Operation, supported_nodes

# Multiples of 8 were the fastest in ONNX Runtime (1.32, AVX-512, ResNet-18 of width 64): 1.77, 1.58, 1.30 times the plain graph at batch
# 1 and keep 0.1, 0.3 and 0.5, and 1.96, 1.66 and 1.44 times at batch 16. With all others removed: 1.68, 1.50, 1.18, 1.94, 1.66, 1.26.
BLOCK = 8
_UNARY = frozenset(("identity", "relu", "sigmoid", "steps", "mask"))


@dataclass(frozen=True)
class ChannelForm:
    """A graph with smaller convolutions.

    Attributes:
        model: The graph.
        layers: Each convolution that is smaller, with the channels of its input and output that are left.
        dense: The estimated time of the network as it was for each image, by batch.
        times: The estimated time of the network in this form for each image, by batch.
        products: The multiplications of each of the `layers` on one image.
    """

    model: onnx.ModelProto
    layers: tuple[tuple[Operation, BoolArray, BoolArray], ...]
    dense: dict[int, float]
    times: dict[int, float]
    products: tuple[int, ...]

    def time(self, batch: int) -> float:
        """Return the estimated time for each image of a batch."""
        return self.times[batch]


def has_channel_masks(network: Network) -> bool:
    """Return whether a network has masks, and all of them are of whole channels."""
    masked = [operation for operation in network.operations.values() if operation.mask is not None]
    return bool(masked) and all(network.array(each.mask).shape[-3:] == (each.shape[0], 1, 1) for each in masked if each.mask)


def channel_form(model: onnx.ModelProto, network: Network, images: str, block: int = BLOCK) -> ChannelForm | None:
    """Remove the channels that masks switch off from the convolutions before and after them; None if no convolution gets smaller.

    Args:
        model: The graph; it is not changed.
        network: The part of it to change.
        images: The name of the images.
        block: Keep multiples of this number of channels.
    """
    operations = list(supported_nodes(network, images))
    channels = _kept_channels(model.graph, network, operations, images, block)
    layers = tuple(
        (operation, channels[operation.inputs[0]], channels[operation.output])
        for operation in operations
        if operation.kind == "conv" and not (channels[operation.inputs[0]].all() and channels[operation.output].all())
    )
    if not layers:
        return None
    products = tuple(
        round(dense_products(network, operation.node) * float(inputs.mean()) * float(outputs.mean()))
        for operation, inputs, outputs in layers
    )
    by_node = {operation.node: operation for operation in operations}
    dense, times = dict.fromkeys(GAIN_BATCHES, 0.0), dict.fromkeys(GAIN_BATCHES, 0.0)
    for position in network.nodes:
        operation = by_node.get(position)
        share = 1.0
        if operation is not None:
            share = channels[operation.output].mean() * (channels[operation.inputs[0]].mean() if operation.kind == "conv" else 1)
        for batch in GAIN_BATCHES:
            plain = plain_time(network, position, batch)
            dense[batch] += plain
            times[batch] += plain * share
    return ChannelForm(_Rewriting(model, network, operations, channels).model(), layers, dense, times, products)


def _kept_channels(
    graph: onnx.GraphProto, network: Network, operations: Sequence[Operation], images: str, block: int
) -> dict[str, BoolArray]:
    """Return the channels of each tensor that stay: those that are needed and can be non-zero, equal for tensors that are added."""
    positions = {operation.node for operation in operations}
    readers = _reader_counts(graph)
    whole = {images, network.target}.union(*(read_by(node) for position, node in enumerate(graph.node) if position not in positions))
    outputs = [operation.output for operation in operations if operation.output in whole]
    demands = needed(operations, outputs, network)
    support = {images: FULL}
    groups = _Groups()
    edges: list[tuple[str, str]] = []
    for operation in operations:
        support[operation.output] = _support(operation, support)
        source, output = operation.inputs[0], operation.output
        if operation.kind == "concat":
            whole.update((*operation.inputs, output))
        elif operation.kind in _UNARY and operation.kind != "identity" and readers[source] > 1:
            edges.append((source, output))
        elif operation.kind != "conv":
            for name in operation.inputs:
                groups.join(name, output)
    masks, kept = network.masks(), dict[str, BoolArray]()
    for name in support:
        count = network.shapes[name][0]
        required = (support[name] & demands.get(name, NOTHING)).evaluate(masks, (count, 1, 1)).reshape(-1)
        group = groups.find(name)
        kept[group] = kept.get(group, np.zeros(count, bool)) | required | (name in whole)
    changed = True
    while changed:
        before = sum(int(each.sum()) for each in kept.values())
        for source, output in edges:
            kept[groups.find(source)] = kept[groups.find(source)] | kept[groups.find(output)]
        kept = {group: _rounded(each, block) for group, each in kept.items()}
        changed = sum(int(each.sum()) for each in kept.values()) != before
    return {name: kept[groups.find(name)] for name in support}


def _reader_counts(graph: onnx.GraphProto) -> Counter[str]:
    """Return how many nodes read each tensor; the caller of the graph reads each of its outputs."""
    return Counter([output.name for output in graph.output]) + Counter(name for node in graph.node for name in read_by(node))


def _support(operation: Operation, support: dict[str, MaskExpression]) -> MaskExpression:
    """Return the channels of an operation's output that can be non-zero."""
    first = support[operation.inputs[0]]
    if operation.mask is not None:
        return first & MaskExpression.of(operation.mask)
    if operation.kind in ("add", "mul"):
        second = support[operation.inputs[1]]
        return first | second if operation.kind == "add" else first & second
    is_kept = operation.kind in ("identity", "relu", "maxpool", "avgpool", "mean") or (operation.kind == "steps" and not operation.fills)
    return first if is_kept else FULL


def _rounded(channels: BoolArray, block: int) -> BoolArray:
    """Return `channels` and the first others, up to full blocks."""
    count = int(channels.sum())
    missing = min(max(-(-count // block), 1) * block, channels.size) - count
    rounded: BoolArray = channels.copy()
    rounded[np.flatnonzero(~channels)[:missing]] = True
    return rounded


@dataclass
class _Groups:
    """Tensors with the same channels (union-find)."""

    parents: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """Return the tensor that stands for the group of `name`."""
        while (parent := self.parents.get(name, name)) != name:
            name = parent
        return name

    def join(self, one: str, other: str) -> None:
        """Join the groups of two tensors."""
        self.parents[self.find(one)] = self.find(other)


class _Rewriting:
    """Writes a graph with fewer channels."""

    def __init__(self, model: onnx.ModelProto, network: Network, operations: Sequence[Operation], channels: dict[str, BoolArray]) -> None:
        self.source = model
        self.network = network
        self.channels = channels
        self.operations = {operation.node: operation for operation in operations}
        self.producers = {operation.output: operation for operation in operations}
        self.readers = _reader_counts(model.graph)
        self.outside = {output.name for output in model.graph.output}
        for position, node in enumerate(model.graph.node):
            self.outside |= set() if position in self.operations else read_by(node)
        self.taken = names_of(model.graph) | {node.name for node in model.graph.node}
        self.constants: list[onnx.TensorProto] = []
        self.first: list[onnx.NodeProto] = []  # computed from constants only
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[object, ...], str] = {}
        self.alias: dict[str, str] = {}
        # A mask after a convolution that nothing else reads is applied to the weights.
        self.masks = {
            operation.inputs[0]: operation
            for operation in operations
            if operation.mask is not None and self.readers[operation.inputs[0]] == 1 and self._is_conv(operation.inputs[0])
        }

    def model(self) -> onnx.ModelProto:
        """Return the graph."""
        for position, node in enumerate(self.source.graph.node):
            operation = self.operations.get(position)
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            if operation is None:
                self.nodes.append(copy)
            else:
                self._rewrite(operation, copy)
        result = onnx.ModelProto()
        result.CopyFrom(self.source)
        constants = [node for node in self.nodes if node.op_type == "Constant"]
        others = [node for node in self.nodes if node.op_type != "Constant"]
        replace(result.graph, "node", [*constants, *self.first, *others])
        result.graph.initializer.extend(self.constants)
        changed = {operation.output for operation in self.operations.values()}
        replace(result.graph, "value_info", [value for value in result.graph.value_info if value.name not in changed])
        return result

    def _is_conv(self, name: str) -> bool:
        return name in self.producers and self.producers[name].kind == "conv"

    def _rewrite(self, operation: Operation, node: onnx.NodeProto) -> None:
        kept = self.channels[operation.output]
        if operation.kind == "conv":
            self._conv(operation, node, kept)
            return
        if operation.mask is not None and operation.inputs[0] in self.masks:
            return
        inputs = {name: self._selected(name, kept) if operation.kind in _UNARY else self.alias.get(name, name) for name in operation.inputs}
        if operation.mask is not None:
            mask = self.network.array(operation.mask)
            if not (kept & ~mask.reshape(-1)).any():
                source = inputs[operation.inputs[0]]
                if operation.output in self.outside:
                    self.nodes.append(helper.make_node("Identity", [source], [operation.output], name=node.name))
                else:
                    self.alias[operation.output] = source
                return
            inputs[operation.mask] = self._gathered(operation.mask, kept, mask.ndim - 3)
        for name in operation.step.constants if operation.step is not None else ():
            values = self.network.array(name)
            if values.size > 1:
                inputs[name] = self._gathered(
                    name, kept, 0 if operation.step is not None and operation.step.kind == "bn" else values.ndim - 3
                )
        node.input[:] = [inputs.get(name, name) for name in node.input]
        self.nodes.append(node)

    def _conv(self, operation: Operation, node: onnx.NodeProto, kept: BoolArray) -> None:
        assert operation.weight is not None
        weight, bias = operation.weight, operation.bias
        follower = self.masks.get(operation.output)
        if follower is not None:
            assert follower.mask is not None
            weight = self._masked(weight, follower.mask, (-1, 1, 1, 1))
            bias = None if bias is None else self._masked(bias, follower.mask, (-1,))
            node.output[0] = follower.output
        weight = self._gathered(self._gathered(weight, kept, 0), self.channels[operation.inputs[0]], 1)
        source = self.alias.get(operation.inputs[0], operation.inputs[0])
        node.input[:] = [source, weight, *([] if bias is None else [self._gathered(bias, kept, 0)])]
        self.nodes.append(node)

    def _selected(self, name: str, kept: BoolArray) -> str:
        """Return the tensor with the `kept` channels of `name`, which has at least these."""
        present = self.channels[name]
        source = self.alias.get(name, name)
        if (present == kept).all():
            return source
        output = self._new(f"{name}_kept")
        indices = self._constant(np.flatnonzero(kept[present]))
        self.nodes.append(helper.make_node("Gather", [source, indices], [output], name=output, axis=1))
        return output

    def _gathered(self, name: str, kept: BoolArray, axis: int) -> str:
        """Return the part of a constant for the `kept` channels along `axis`."""
        if kept.all():
            return name
        indices = self._constant(np.flatnonzero(kept))
        return self._computed("Gather", (name, indices), f"{name}_kept", axis=axis)

    def _masked(self, name: str, mask: str, shape: tuple[int, ...]) -> str:
        """Return a weight or bias that is 0 for the outputs that a mask switches off."""
        condition = self._computed("Reshape", (mask, self._constant(np.array(shape))), f"{mask}_column")
        return self._computed("Where", (condition, name, self._constant(np.zeros((), np.float32))), f"{name}_masked")

    def _computed(self, operator: str, inputs: tuple[str, ...], name: str, axis: int | None = None) -> str:
        key = (operator, inputs, axis)
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        if key not in self.made:
            self.made[key] = self._new(name)
            self.first.append(helper.make_node(operator, list(inputs), [self.made[key]], name=self.made[key], **attributes))
        return self.made[key]

    def _constant(self, values: npt.NDArray[np.generic]) -> str:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self.made:
            self.made[key] = self._new("channels" if values.ndim else "masked_value")
            self.constants.append(numpy_helper.from_array(values, self.made[key]))
        return self.made[key]

    def _new(self, name: str) -> str:
        name = unique_name(name, self.taken)
        self.taken.add(name)
        return name
