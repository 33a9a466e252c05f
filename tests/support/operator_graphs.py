"""A graph of one node that the operator library computes: it keeps the values of its input where a mask is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from defensemble_ops import DOMAIN, OPERATOR
from tests.support import backend_graphs as graphs

SHAPE = (2, 3, 4)
MASK = np.random.default_rng(3).random(SHAPE) < 0.4
CONFIG = graphs.config([("x", TensorProto.FLOAT, SHAPE)], [("y", TensorProto.FLOAT, SHAPE)])
_PROGRAM = """lanes 1,1,8,16
images shape=2,3,4
map in=0 steps= act=none support=1
output in=1
"""


def masking(operator: str = OPERATOR, program: str = _PROGRAM) -> onnx.ModelProto:
    """Make the graph: a node, and the function that defines it with ordinary nodes."""
    node = helper.make_node(operator, ["x", "mask"], ["y"], domain=DOMAIN, program=program)
    made = graphs.model(
        [node],
        [graphs.value("x", TensorProto.FLOAT, ["batch", *SHAPE])],
        [graphs.value("y", TensorProto.FLOAT, ["batch", *SHAPE])],
        [graphs.tensor("mask", MASK)],
    )
    zero = helper.make_node("Constant", [], ["zero"], value=graphs.tensor("", np.array(0, np.float32)))
    body = [zero, helper.make_node("Where", ["mask", "x", "zero"], ["y"])]
    function = helper.make_function(DOMAIN, operator, ["x", "mask"], ["y"], body, [helper.make_opsetid("", 20)], attributes=["program"])
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    onnx.checker.check_model(made, full_check=True)
    return made


def images(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, *SHAPE)).astype(np.float32)


def masked(values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """What the graph answers."""
    return np.where(MASK, values, np.float32(0))
