"""Read a graph as the operations that a mask-aware program can express; what it cannot express is kept with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..operators import is_standard
from ..traversal import constants_of, read_by, real_inputs, shape_of
from .expressions import Shape
from .program import (
    MAX_CONV_CELLS,
    MAX_CONV_INPUTS,
    MAX_EXTENT,
    MAX_NEURONS,
    MAX_WEIGHT_ROWS,
    MAX_WINDOW_CELLS,
    Step,
    Window,
)
from .supports import output_extents

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Operation:
    """A node of the graph, as a program can express it.

    Attributes:
        kind: identity, relu, sigmoid, mask, steps, conv, maxpool, avgpool, mean, add, mul or concat.
        node: The position of the node in the graph.
        inputs: The tensors that it reads, without constants.
        output: The tensor that it computes.
        shape: (C,H,W) of the output.
        mask: The mask of a Where.
        step: What a `steps` does.
        fills: Whether a `steps` can turn 0 into something else.
        weight: The weight of a convolution.
        bias: Its bias.
        window: The window of a convolution or a pool.
        ceil: Whether a pool has a last window that is partly outside.
        include_pad: Whether a mean counts cells outside.
    """

    kind: str
    node: int
    inputs: tuple[str, ...]
    output: str
    shape: Shape
    mask: str | None = None
    step: Step | None = None
    fills: bool = False
    weight: str | None = None
    bias: str | None = None
    window: Window | None = None
    ceil: bool = False
    include_pad: bool = False


@dataclass
class Network:
    """The part of a graph from `images` to one tensor.

    Attributes:
        graph: The graph.
        target: The tensor.
        nodes: The positions of the nodes from which it is computed, in order, without Constant nodes.
        shapes: (C,H,W) of the tensors with four axes, as far as they are fixed.
        constants: The constants, by name.
        operations: What a program can express, by the position of the node.
        refused: Why a program cannot express the other nodes.
        readers: The positions of the nodes that read each tensor.
    """

    graph: onnx.GraphProto
    target: str
    nodes: list[int]
    shapes: dict[str, Shape]
    constants: Mapping[str, TensorProto]
    operations: dict[int, Operation] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)
    _arrays: dict[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """Return the values of a constant."""
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def masks(self) -> dict[str, Array]:
        """Return the masks that the operations apply, by name."""
        return {operation.mask: self.array(operation.mask) for operation in self.operations.values() if operation.mask is not None}

    def channels(self) -> dict[str, int]:
        """Return the output channels of the weights of all convolutions."""
        return {each.weight: int(self.constants[each.weight].dims[0]) for each in self.operations.values() if each.weight is not None}


def read_network(model: onnx.ModelProto, target: str = "logits") -> Network:
    """Read the part of a graph from which `target` is computed, a tensor of the graph."""
    graph = model.graph
    wanted, nodes = {target}, []
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if wanted.intersection(node.output):
            wanted |= read_by(node)
            if not (node.op_type == "Constant" and is_standard(node)):
                nodes.append(position)
    nodes.reverse()
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes: dict[str, Shape] = {}
    for value in (*real_inputs(inferred), *inferred.value_info, *inferred.output):
        extents = shape_of(value)
        if len(extents) == 4 and None not in extents[1:] and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            channels, height, width = (int(extent or 0) for extent in extents[1:])
            shapes[value.name] = channels, height, width
    network = Network(graph, target, nodes, shapes, constants_of(graph))
    for position in nodes:
        node = graph.node[position]
        for name in read_by(node):
            network.readers.setdefault(name, []).append(position)
        try:
            network.operations[position] = _Reader(network, position).read()
        except _UnsupportedError as error:
            network.refused[position] = str(error)
    return network


class _UnsupportedError(Exception):
    """A program cannot express a node; the text is the reason."""


class _Reader:
    """Reads one node."""

    def __init__(self, network: Network, position: int) -> None:
        self.network = network
        self.position = position
        self.node = network.graph.node[position]
        self.attributes = {entry.name: helper.get_attribute_value(entry) for entry in self.node.attribute}

    def read(self) -> Operation:
        node = self.node
        read: Callable[[], Operation] | None = getattr(self, f"_read_{node.op_type.lower()}", None)
        if read is None or not is_standard(node):
            raise _UnsupportedError(f"the operator {node.op_type} is not supported")
        used = [name for name in node.output if name]
        if len(used) != 1 and not all(name not in self.network.readers for name in used[1:]):
            raise _UnsupportedError(f"{node.op_type} has {len(used)} outputs, expected 1")
        return read()

    def _operation(self, kind: str, inputs: Sequence[str], **values: Any) -> Operation:
        for name in inputs:
            self._shape(name)
        shape = self._shape(self.node.output[0])
        return Operation(kind, self.position, tuple(inputs), self.node.output[0], shape, **values)

    def _shape(self, name: str) -> Shape:
        if name not in self.network.shapes:
            raise _UnsupportedError(f"the tensor '{name}' is not FLOAT [N,C,H,W] with fixed C, H and W")
        shape = self.network.shapes[name]
        if not all(1 <= extent <= MAX_EXTENT for extent in shape) or math.prod(shape) > MAX_NEURONS:
            raise _UnsupportedError(
                f"the tensor '{name}' is {shape}, expected extents up to {MAX_EXTENT} and at most {MAX_NEURONS} neurons"
            )
        return shape

    def _constant(self, name: str) -> Array | None:
        return self.network.array(name) if name in self.network.constants else None

    def _unary(self, kind: str) -> Operation:
        if self._shape(self.node.input[0]) != self._shape(self.node.output[0]):
            raise _UnsupportedError("the input and the output differ in shape")
        return self._operation(kind, self.node.input[:1])

    def _read_identity(self) -> Operation:
        return self._unary("identity")

    def _read_dropout(self) -> Operation:
        training = self._constant(self.node.input[2]) if len(self.node.input) > 2 and self.node.input[2] else np.array(False)
        if training is None or training.any():
            raise _UnsupportedError("Dropout in training mode is random")
        return self._unary("identity")

    def _read_relu(self) -> Operation:
        return self._unary("relu")

    def _read_sigmoid(self) -> Operation:
        return self._unary("sigmoid")

    def _read_where(self) -> Operation:
        mask, kept, other = self.node.input
        if mask not in self.network.constants or self.network.constants[mask].data_type != TensorProto.BOOL:
            raise _UnsupportedError(f"the condition '{mask}' is computed, expected a BOOL initialiser")
        values = self._constant(other)
        if values is None or values.any():
            first = self._constant(kept)
            where = "True" if first is not None and not first.any() else "False"
            raise _UnsupportedError(
                f"Where does not give 0 where the mask '{mask}' is False" + (f" but where it is {where}" if where == "True" else "")
            )
        shape = self._shape(kept)
        dims = tuple(self.network.constants[mask].dims)
        if len(dims) == 4 and dims[0] == 1:
            dims = dims[1:]
        if self._shape(self.node.output[0]) != shape or dims not in (shape, (shape[0], 1, 1), (1, *shape[1:])):
            raise _UnsupportedError(f"the mask '{mask}' is {dims}, expected {shape}, {(shape[0], 1, 1)} or {(1, *shape[1:])}")
        return self._operation("mask", (kept,), mask=mask)

    def _read_add(self) -> Operation:
        return self._combined("add")

    def _read_mul(self) -> Operation:
        return self._combined("mul")

    def _read_sub(self) -> Operation:
        return self._stepped("sub", self.node.input[0], self.node.input[1])

    def _read_div(self) -> Operation:
        return self._stepped("div", self.node.input[0], self.node.input[1])

    def _combined(self, kind: str) -> Operation:
        first, second = self.node.input
        if first in self.network.constants or second in self.network.constants:
            return self._stepped(kind, first, second) if second in self.network.constants else self._stepped(kind, second, first)
        shape = self._shape(self.node.output[0])
        if not {self._shape(first), self._shape(second)} <= {shape, (shape[0], 1, 1)}:
            raise _UnsupportedError(
                f"its inputs are {self._shape(first)} and {self._shape(second)}, expected {shape} or {(shape[0], 1, 1)}"
            )
        return self._operation(kind, (first, second))

    def _stepped(self, kind: str, source: str, constant: str) -> Operation:
        values = self._constant(constant)
        if values is None:
            raise _UnsupportedError(f"'{constant}' is computed, expected a constant")
        shape = self._shape(source)
        if values.dtype != np.float32 or not (values.size == 1 or values.shape in ((shape[0], 1, 1), (1, shape[0], 1, 1))):
            raise _UnsupportedError(
                f"the constant '{constant}' is {values.dtype} {values.shape}, expected FLOAT with one value for each channel"
            )
        if self._shape(self.node.output[0]) != shape:
            raise _UnsupportedError("the input and the output differ in shape")
        with np.errstate(all="ignore"):
            at_zero = {"sub": -values, "div": 0 / values, "mul": 0 * values, "add": values}[kind]
        if not np.isfinite(at_zero).all():  # steps are composed to x * scale + shift, which then is NaN for every x
            raise _UnsupportedError(f"{self.node.op_type} with the constant '{constant}' turns 0 into NaN or infinity")
        return self._operation("steps", (source,), step=Step(kind, (constant,)), fills=bool((at_zero != 0).any()))

    def _read_batchnormalization(self) -> Operation:
        source, *names = self.node.input
        if self.attributes.get("training_mode", 0):
            raise _UnsupportedError("BatchNormalization is in training mode")
        shape = self._shape(source)
        for name in names:
            values = self._constant(name)
            if values is None or values.dtype != np.float32 or values.shape != (shape[0],):
                raise _UnsupportedError(f"'{name}' is not a FLOAT constant with {shape[0]} values")
        scale, bias, mean, variance = (self.network.array(name) for name in names)
        epsilon = float(self.attributes.get("epsilon", 1e-5))
        with np.errstate(all="ignore"):
            factors = scale / np.sqrt(variance + epsilon)
        if not all(np.isfinite(values).all() for values in (factors, bias, mean)):
            raise _UnsupportedError("BatchNormalization turns 0 into NaN or infinity")
        fills = bool(bias.any() or mean.any())
        step = Step("bn", tuple(names), epsilon)
        return self._operation("steps", (source,), step=step, fills=fills)

    def _window(self, source: str, kernel: Sequence[int]) -> Window:
        pads = tuple(self.attributes.get("pads", (0, 0, 0, 0)))
        strides, dilations = (tuple(self.attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
        mode = self.attributes.get("auto_pad", b"NOTSET").decode()
        if mode == "VALID":
            pads = (0, 0, 0, 0)
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            totals = []
            for extent, size, stride, dilation in zip(self._shape(source)[1:], kernel, strides, dilations, strict=True):
                totals.append(max((-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent, 0))
            small = [total // 2 for total in totals]
            large = [total - half for total, half in zip(totals, small, strict=True)]
            pads = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
        if not all(1 <= value <= MAX_EXTENT for value in (*kernel, *strides, *dilations)) or not all(
            0 <= pad <= MAX_EXTENT for pad in pads
        ):
            raise _UnsupportedError(
                f"a kernel {tuple(kernel)}, stride {strides}, dilation {dilations} or pad {pads} is not in 1 to {MAX_EXTENT} (pads: 0)"
            )
        return Window((kernel[0], kernel[1]), strides, pads, dilations)

    def _read_conv(self) -> Operation:
        source, weight, *rest = self.node.input
        values = self._constant(weight)
        bias = next((name for name in rest if name), None)
        offsets = None if bias is None else self._constant(bias)
        if (
            values is None
            or values.dtype != np.float32
            or values.ndim != 4
            or (bias is not None and (offsets is None or offsets.dtype != np.float32))
        ):
            raise _UnsupportedError("the weight or bias of the convolution is not a FLOAT constant")
        if self.attributes.get("group", 1) != 1:
            raise _UnsupportedError(f"the convolution has {self.attributes['group']} groups, expected 1")
        if values[0].size > MAX_WEIGHT_ROWS:
            raise _UnsupportedError(
                f"the convolution has {values[0].size} weights for each output channel, expected at most {MAX_WEIGHT_ROWS}"
            )
        if not np.isfinite(values).all():
            raise _UnsupportedError(f"the weight '{weight}' contains NaN or infinity, which a product with 0 keeps")
        window = self._window(source, values.shape[2:])
        shape = self._shape(self.node.output[0])
        expected = (values.shape[0], *output_extents(self._shape(source)[1:], window))
        if shape != expected or self._shape(source)[0] != values.shape[1]:
            raise _UnsupportedError(f"the output is {shape}, expected {expected}")
        cells = math.prod(shape[1:]) * math.prod(window.kernel)
        if cells > MAX_CONV_CELLS or cells * values.shape[1] > MAX_CONV_INPUTS:
            raise _UnsupportedError(
                f"the windows of the convolution have {cells} cells of {values.shape[1]} channels, expected at most {MAX_CONV_CELLS} cells "
                f"and {MAX_CONV_INPUTS} neurons"
            )
        return self._operation("conv", (source,), weight=weight, bias=bias, window=window)

    def _read_maxpool(self) -> Operation:
        window = self._pool_window()
        ceil = bool(self.attributes.get("ceil_mode", 0))
        return self._checked_pool(self._operation("maxpool", self.node.input[:1], window=window, ceil=ceil))

    def _read_averagepool(self) -> Operation:
        window = self._pool_window()
        include = bool(self.attributes.get("count_include_pad", 0))
        if self.attributes.get("ceil_mode", 0):  # the divisor of a last window that is partly outside depends on the version
            extents = self._shape(self.node.input[0])[1:]
            if output_extents(extents, window) != output_extents(extents, window, ceil=True):
                raise _UnsupportedError("AveragePool with ceil_mode has a last window that is partly outside")
        return self._checked_pool(self._operation("avgpool", self.node.input[:1], window=window, include_pad=include))

    def _pool_window(self) -> Window:
        kernel = self.attributes["kernel_shape"]
        window = self._window(self.node.input[0], kernel)
        if window.dilations != (1, 1):
            raise _UnsupportedError(f"the pool has dilations of {window.dilations}, expected 1")
        if any(pad >= size for pad, size in zip(window.pads, (*kernel, *kernel), strict=True)):
            raise _UnsupportedError(f"the pool has windows outside the image: pads {window.pads}, kernel {window.kernel}")
        return window

    def _checked_pool(self, operation: Operation) -> Operation:
        shape = self._shape(operation.inputs[0])
        assert operation.window is not None
        expected = (shape[0], *output_extents(shape[1:], operation.window, operation.ceil))
        if operation.shape != expected:
            raise _UnsupportedError(f"the output is {operation.shape}, expected {expected}")
        # A window covers at most the image.
        cells = math.prod(expected) * math.prod(min(pair) for pair in zip(operation.window.kernel, shape[1:], strict=True))
        if cells > MAX_WINDOW_CELLS:
            raise _UnsupportedError(f"the windows of the pool have {cells} cells, expected at most {MAX_WINDOW_CELLS}")
        return operation

    def _read_globalaveragepool(self) -> Operation:
        return self._operation("mean", self.node.input[:1])

    def _read_reducemean(self) -> Operation:
        shape = self._shape(self.node.input[0])
        axes = self.attributes.get("axes")
        if len(self.node.input) > 1 and self.node.input[1]:
            values = self._constant(self.node.input[1])
            axes = None if values is None else values.tolist()
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3] or not self.attributes.get("keepdims", 1):
            raise _UnsupportedError("ReduceMean does not keep [N,C,1,1] of [N,C,H,W]")
        if self._shape(self.node.output[0]) != (shape[0], 1, 1):
            raise _UnsupportedError("ReduceMean does not keep [N,C,1,1] of [N,C,H,W]")
        return self._operation("mean", self.node.input[:1])

    def _read_concat(self) -> Operation:
        if self.attributes["axis"] not in (1, -3):
            raise _UnsupportedError(f"Concat is along axis {self.attributes['axis']}, expected 1 (channels)")
        if constant := next((name for name in self.node.input if name in self.network.constants), None):
            raise _UnsupportedError(f"Concat reads the constant '{constant}'")
        return self._operation("concat", self.node.input)


def supported_nodes(network: Network, images: str) -> Iterator[Operation]:
    """Yield the operations whose ancestors a program can express, too, in order."""
    known = {images}
    for position in network.nodes:
        operation = network.operations.get(position)
        if operation is not None and known.issuperset(operation.inputs):
            known.add(operation.output)
            yield operation
