"""What TensorRT's ONNX parser is documented to read, and what of a graph it is not: found before a build, which takes minutes."""

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

# The list's words for ONNX's types. DOUBLE is cast down to FP32, as the list says.
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
# Restrictions of the list that an exported graph could break; its others are about what no exporter of ours writes.
_ZERO_POINT_IS_ZERO = ("QuantizeLinear", "DequantizeLinear")
_REDUCTIONS = "Reduce"


@dataclass(frozen=True)
class ParserList:
    """The documented list: which version it is of, the opsets, and for each operator the types that its data may have."""

    source: str
    tensorrt: str
    opsets: tuple[int, int]
    operators: dict[str, frozenset[str]]


@cache
def parser_list() -> ParserList:
    """The list in the folder of this module."""
    values = json.loads(Path(__file__).with_name("parser_support.json").read_text())
    operators = {name: frozenset(types.split()) for name, types in values["operators"].items()}
    least, most = values["opsets"]
    return ParserList(values["source"], values["tensorrt"], (least, most), operators)


def problems_of_graph(model: onnx.ModelProto) -> list[str]:
    """What of a graph the parser is not documented to read, each with the name of its node; empty where all is.

    Operators, the type of each one's first input, the opset, and those restrictions of the list that exported graphs could break.
    """
    known = parser_list()
    problems = []
    for opset in model.opset_import:
        least, most = known.opsets
        if opset.domain in STANDARD_DOMAINS and not least <= opset.version <= most:
            problems.append(f"the graph is of opset {opset.version}, the parser reads {least} to {most}")
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        return [*problems, f"the graph's types cannot be inferred: {error}"]
    for graph in graphs_of(inferred.graph):
        types = _types_of(graph)
        constants = constants_of(graph)
        for index, node in enumerate(graph.node):
            name = f"node '{node.name or index}' ({node.op_type})"
            problems += [f"{name}: {problem}" for problem in _problems_of_node(node, types, constants, known)]
    return problems


def _problems_of_node(
    node: onnx.NodeProto, types: dict[str, int], constants: dict[str, onnx.TensorProto], known: ParserList
) -> Iterator[str]:
    if not is_standard(node):
        yield f"an operator of the domain '{node.domain}' needs a plugin, and plugins are not built in"
        return
    if node.op_type not in known.operators:
        yield f"the parser of TensorRT {known.tensorrt} is not documented to read this operator"
        return
    allowed = known.operators[node.op_type]
    element = types.get(node.input[0]) if node.input else None
    if element is not None:
        word = _TYPES.get(element)
        if word not in allowed:
            got = word or TensorProto.DataType.Name(element)
            yield f"its input '{node.input[0]}' is {got}, the parser reads {', '.join(sorted(allowed))}"
    if node.op_type in _ZERO_POINT_IS_ZERO and len(node.input) > 2 and node.input[2]:
        zero_point = constants.get(node.input[2])
        if zero_point is None or np.any(numpy_helper.to_array(zero_point)):
            yield f"its zero point '{node.input[2]}' must be a constant 0: quantise symmetrically"
    if node.op_type.startswith(_REDUCTIONS) and len(node.input) > 1 and node.input[1] and node.input[1] not in constants:
        yield f"its axes '{node.input[1]}' must be an initialiser"
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield "its output of indices is not supported"


def _types_of(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
