"""Find the parts of a graph that TensorRT's ONNX parser is not documented to support, before a build, which takes minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..graphs.operators import STANDARD_DOMAINS, is_standard
from ..graphs.traversal import constants_of, graphs_of

# The list's names of ONNX types. DOUBLE is cast down to FP32, according to the list.
_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT4: "INT4",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}
# Restrictions in the list that an exported graph could violate. The others are about operators that our exporters do not write.
_ZERO_POINT_IS_ZERO = ("QuantizeLinear", "DequantizeLinear")
_REDUCTIONS = "Reduce"


@dataclass(frozen=True)
class ParserList:
    """The documented list: its source and TensorRT version, the range of opsets, and the allowed types of each operator."""

    source: str
    tensorrt: str
    opsets: tuple[int, int]
    operators: dict[str, frozenset[str]]


@cache
def parser_list() -> ParserList:
    """Return the list in the folder of this module."""
    values = json.loads(Path(__file__).with_name("parser_support.json").read_text())
    operators = {name: frozenset(types.split()) for name, types in values["operators"].items()}
    oldest, newest = values["opsets"]
    return ParserList(values["source"], values["tensorrt"], (oldest, newest), operators)


def problems_of_graph(model: onnx.ModelProto) -> list[str]:
    """Return what the parser is not documented to support in a graph, each with the name of its node.

    Checked are the operators, the type of their first input, the opset, and the restrictions that exported graphs could violate.
    """
    documented = parser_list()
    problems = []
    for opset in model.opset_import:
        oldest, newest = documented.opsets
        if opset.domain in STANDARD_DOMAINS and not oldest <= opset.version <= newest:
            problems.append(f"the graph has opset {opset.version}, but the parser supports {oldest} to {newest}")
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        return [*problems, f"the graph's types cannot be inferred: {error}"]
    for graph in graphs_of(inferred.graph):
        types = _types_of(graph)
        constants = constants_of(graph)
        for index, node in enumerate(graph.node):
            name = f"node '{node.name or index}' ({node.op_type})"
            problems += [f"{name}: {problem}" for problem in _problems_of_node(node, types, constants, documented)]
    return problems


def _problems_of_node(
    node: onnx.NodeProto, types: dict[str, int], constants: dict[str, onnx.TensorProto], documented: ParserList
) -> Iterator[str]:
    if not is_standard(node):
        yield f"an operator of the domain '{node.domain}' needs a plugin, and plugins are not supported"
        return
    if node.op_type not in documented.operators:
        yield f"the parser of TensorRT {documented.tensorrt} is not documented to support this operator"
        return
    allowed = documented.operators[node.op_type]
    element = types.get(node.input[0]) if node.input else None
    if element is not None:
        type_name = _TYPES.get(element)
        if type_name not in allowed:
            got = type_name or TensorProto.DataType.Name(element)
            yield f"its input '{node.input[0]}' is {got}, but the parser supports {', '.join(sorted(allowed))}"
    if node.op_type in _ZERO_POINT_IS_ZERO and len(node.input) > 2 and node.input[2]:
        zero_point = constants.get(node.input[2])
        if zero_point is None or np.any(numpy_helper.to_array(zero_point)):
            yield f"its zero point '{node.input[2]}' must be a constant 0: quantise symmetrically"
    if node.op_type.startswith(_REDUCTIONS) and len(node.input) > 1 and node.input[1] and node.input[1] not in constants:
        yield f"its axes '{node.input[1]}' must be an initialiser"
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield "its second output, the indices, is not supported"


def _types_of(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
