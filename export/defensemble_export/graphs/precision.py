"""Determine the precision that a graph computes in: from what its operators consume, not from the types of all its constants.

A table of indices, an image or a mask may be UINT8 in a float32 network. Only weights, which operators multiply with values that depend on
the images, and values of 16 bits that depend on the images show the precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx
from onnx import TensorProto

from .operators import MOVES, QUANTISE_OPERATORS, is_standard
from .traversal import attribute_tensors, real_inputs, subgraphs

_QUANTISING = QUANTISE_OPERATORS | {"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits"}
_QUANTISING_PREFIXES = ("QLinear", "DynamicQuantize")
# How many of its first inputs an operator multiplies. Operators of other domains are unknown: all their inputs count.
_FACTORS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"), 2),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), 3),
    "Einsum": None,
}
_SIXTEEN_BITS = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
# Types of quantised weights, which may be packed into flat tensors.
_FEW_BITS = tuple(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4", "FLOAT8"))
)
# The precision that a weight of a type shows. BOOL and the longer integers are masks, indices and shapes.
_STORED: dict[int, str] = {
    **{number: "int8" for number in _FEW_BITS},
    **{number: "fp16" for number in _SIXTEEN_BITS},
    TensorProto.FLOAT: "fp32",
    TensorProto.DOUBLE: "fp32",
}


def computed_precision(model: onnx.ModelProto) -> str:
    """Return the lowest precision in which a graph computes.

    "int8" stands for every kind of quantisation: Q/DQ pairs, integer operators, and weights of at most 8 bits. "fp16" stands for both
    16-bit float types. Constants that are not weights, such as tables, masks and shapes, do not count.
    """
    found = _Flow(model).found
    return "int8" if "int8" in found else "fp16" if "fp16" in found else "fp32"


def computes_in_float16(model: onnx.ModelProto) -> bool:
    """Return whether a graph, quantised or not, computes in 16-bit floats. ONNX Runtime decides by the neighbours where it rounds them."""
    return "fp16" in _Flow(model).found


class _Value(NamedTuple):
    """What a tensor consists of. `sources` are the constants that it is computed from, by number; None if it depends on the images."""

    sources: frozenset[int] | None
    is_sixteen_bits: bool = False


_UNKNOWN = _Value(None)


class _Flow:
    """The flow of constants and images through a graph; `found` contains the precisions lower than fp32 that it computes in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.found: set[str] = set()
        self.constants: list[tuple[str | None, int]] = []  # precision of the type, and number of values
        self._run(model.graph, {}, [_UNKNOWN] * len(real_inputs(model.graph)))

    def _run(self, graph: onnx.GraphProto, outer: Mapping[str, _Value], inputs: Sequence[_Value]) -> list[_Value]:
        """Follow the nodes of a graph; return its outputs."""
        scope = {**outer, **dict(zip((entry.name for entry in real_inputs(graph)), inputs, strict=False))}
        scope |= {tensor.name: self._constant(tensor) for tensor in graph.initializer}
        for node in graph.node:
            read = [scope.get(name, _UNKNOWN) if name else _Value(frozenset()) for name in node.input]
            bodies = [value for body in subgraphs(node) for value in self._run(body, scope, _body_inputs(node, read))]
            result = self._result(node, [*read, *bodies, *map(self._constant, attribute_tensors(node))])
            if result.sources is None:  # nodes that read only constants are computed once
                self._inspect(node, read, result)
            scope |= dict.fromkeys(node.output, result)
        return [scope.get(entry.name, _UNKNOWN) for entry in graph.output]

    def _constant(self, tensor: onnx.TensorProto) -> _Value:
        self.constants.append((_STORED.get(tensor.data_type), math.prod(tensor.dims)))
        return _Value(frozenset((len(self.constants) - 1,)), tensor.data_type in _SIXTEEN_BITS)

    def _result(self, node: onnx.NodeProto, values: Iterable[_Value]) -> _Value:
        values = list(values)
        targets = {entry.i for entry in node.attribute if entry.name in ("to", "dtype", "output_dtype")}
        if targets & _SIXTEEN_BITS:
            self.found.add("fp16")
        if node.op_type in _QUANTISING or node.op_type.startswith(_QUANTISING_PREFIXES):
            self.found.add("int8")
        sources: frozenset[int] | None = frozenset()
        if any(value.sources is None for value in values):
            sources = None
        elif node.op_type not in ("Shape", "Size"):
            sources = frozenset().union(*(value.sources or () for value in values))
        is_copied = node.op_type not in ("Cast", "Shape", "Size") and any(value.is_sixteen_bits for value in values)
        return _Value(sources, is_copied or bool(targets & _SIXTEEN_BITS))

    def _inspect(self, node: onnx.NodeProto, read: Sequence[_Value], result: _Value) -> None:
        """Find the precisions of a node that computes something from the images."""
        if result.is_sixteen_bits and not (is_standard(node) and node.op_type in MOVES):
            self.found.add("fp16")
        factors = read[: _FACTORS.get(node.op_type, 0)] if is_standard(node) else read
        self.found.update(self._weight_precision(value.sources) for value in factors if value.sources)

    def _weight_precision(self, sources: Iterable[int]) -> str:
        """Return the precision in which most values are stored of which a weight consists.

        Integers have fewer scales than values, and a UINT8 mask has at most as many values as the float32 weights that it masks.
        """
        sizes = Counter({"fp32": 0})
        for kind, size in (self.constants[number] for number in sources):
            if kind is not None and size > 1:
                sizes[kind] += size
        return max(("fp32", "fp16", "int8"), key=lambda kind: sizes[kind])


def _body_inputs(node: onnx.NodeProto, read: Sequence[_Value]) -> list[_Value]:
    """Return the inputs of a node's body: of a Loop and a Scan their own, in order. All but what a Scan slices change from trip to trip."""
    sliced = sum(entry.i for entry in node.attribute if entry.name == "num_scan_inputs")
    carried = len(read) - sliced
    return [value._replace(sources=None) for value in read[:carried]] + list(read[carried:])
