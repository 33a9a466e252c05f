"""Tiny ONNX graphs, each for one thing that a backend can get wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str | None]
TRITON_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.FLOAT16: "TYPE_FP16",
    TensorProto.BFLOAT16: "TYPE_BF16",
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.INT8: "TYPE_INT8",
    TensorProto.INT16: "TYPE_INT16",
    TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.UINT8: "TYPE_UINT8",
    TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT32: "TYPE_UINT32",
    TensorProto.UINT64: "TYPE_UINT64",
}


def value(name: str, element: int, dims: Dims | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, dims)


def tensor(name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def config(
    inputs: Sequence[tuple[str, int, Sequence[int]]],
    outputs: Sequence[tuple[str, int, Sequence[int]]],
    *,
    max_batch_size: int = 8,
    **more: Any,
) -> dict[str, Any]:
    def entries(tensors: Sequence[tuple[str, int, Sequence[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "data_type": TRITON_TYPES[element], "dims": list(dims)} for name, element, dims in tensors]

    return {"max_batch_size": max_batch_size, "input": entries(inputs), "output": entries(outputs), **more}


def parameters(**values: str) -> dict[str, Any]:
    """The `parameters` of a config; a double underscore stands for a dot."""
    return {"parameters": {key.replace("__", "."): {"string_value": text} for key, text in values.items()}}


# Eight requests within two seconds are one batch, at once.
JOIN_EIGHT = {"dynamic_batching": {"preferred_batch_size": [8], "max_queue_delay_microseconds": 2_000_000}}

AFFINE_CONFIG = config([("x", TensorProto.FLOAT, [4])], [("y", TensorProto.FLOAT, [4]), ("total", TensorProto.FLOAT, [1])])


def affine() -> onnx.ModelProto:
    """y = 2 x + 1 and total = sum of x, over x of (batch, 4)."""
    return model(
        [
            helper.make_node("Mul", ["x", "two"], ["doubled"]),
            helper.make_node("Add", ["doubled", "one"], ["y"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
        ],
        [value("x", TensorProto.FLOAT, ["batch", 4])],
        [value("y", TensorProto.FLOAT, ["batch", 4]), value("total", TensorProto.FLOAT, ["batch", 1])],
        [
            tensor("two", np.array(2, np.float32)),
            tensor("one", np.array(1, np.float32)),
            tensor("axes", np.array([1], np.int64)),
        ],
    )


GATHER_CONFIG = config([("index", TensorProto.INT64, [1])], [("row", TensorProto.FLOAT, [1, 3])])


def gather() -> onnx.ModelProto:
    """row = table[index]: an index outside 0..9 fails at run time, with all that are in its run."""
    return model(
        [helper.make_node("Gather", ["table", "index"], ["row"], axis=0)],
        [value("index", TensorProto.INT64, ["batch", 1])],
        [value("row", TensorProto.FLOAT, ["batch", 1, 3])],
        [tensor("table", gather_table())],
    )


def gather_table() -> npt.NDArray[np.float32]:
    return np.arange(30, dtype=np.float32).reshape(10, 3)


def identity(element: int, dims: Dims) -> onnx.ModelProto:
    return model([helper.make_node("Identity", ["x"], ["y"])], [value("x", element, dims)], [value("y", element, dims)])


LOOP_CONFIG = config([("rounds", TensorProto.INT64, [1])], [("done", TensorProto.INT64, [1])])


def loop() -> onnx.ModelProto:
    """Counts to the largest of `rounds`, about a million a second, and answers `rounds`: a run that takes as long as one wants."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go"]), helper.make_node("Add", ["count_in", "step"], ["count"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go_in", TensorProto.BOOL, []), value("count_in", TensorProto.INT64, [1])],
        [value("go", TensorProto.BOOL, []), value("count", TensorProto.INT64, [1])],
        [tensor("step", np.array([1], np.int64))],
    )
    return model(
        [
            helper.make_node("ReduceMax", ["rounds"], ["trips"], keepdims=0),
            helper.make_node("Loop", ["trips", "true", "zero"], ["counted"], body=body),
            helper.make_node("Mul", ["counted", "zero"], ["nothing"]),
            helper.make_node("Add", ["rounds", "nothing"], ["done"]),
        ],
        [value("rounds", TensorProto.INT64, ["batch", 1])],
        [value("done", TensorProto.INT64, ["batch", 1])],
        [tensor("true", np.array(True)), tensor("zero", np.array([0], np.int64))],
    )
