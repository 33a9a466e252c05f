"""The small ONNX graph that averages the members of an ensemble and measures their disagreement.

With weights w (normalised to sum 1) and s_m = softmax(logits_m): `probabilities` is sum w_m s_m or softmax(sum w_m logits_m);
`entropy` = H(probabilities) and `mutual_information` = H(sum w_m s_m) - sum w_m H(s_m), in nats. It is one model, because Triton's core
(2.51) crashed when the last two steps of an ensemble both failed for one request, as they do when a caller cancels it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from defensemble_repository.configs import averaging_outputs
from defensemble_repository.ensemble import Ensemble
from defensemble_repository.onnx_metadata import IR_VERSION, OPSET


def average_onnx(ensemble: Ensemble, num_classes: int) -> bytes:
    """Build the graph of the model `average_<digest>`: from `logits_m` FP32 [N,K] of each member m to `averaging_outputs`.

    Args:
        ensemble: The ensemble, with its weights and average.
        num_classes: K, at least 2.
    """
    graph = _Graph(ensemble)
    stacked = graph.stack(num_classes)
    members = graph.add("Softmax", [stacked], "member_probabilities", axis=2)
    weighted = graph.add("Mul", [members, graph.weights()])
    if ensemble.average == "probabilities":
        mixture = graph.sum_members(weighted, "probabilities")
        negative_entropy = negative_mixture_entropy = graph.sum_classes(graph.add("Mul", [mixture, graph.log(mixture)]))
    else:
        mixture = graph.sum_members(weighted)
        negative_mixture_entropy = graph.sum_classes(graph.add("Mul", [mixture, graph.log(mixture)]))
        logits = graph.sum_members(graph.add("Mul", [stacked, graph.weights()]))
        probabilities = graph.add("Softmax", [logits], "probabilities", axis=1)
        negative_entropy = graph.sum_classes(graph.add("Mul", [probabilities, graph.log_softmax(logits, axis=1)]))
    graph.add("Neg", [negative_entropy], "entropy")
    # [N,M]: w_m sum_k s_mk log s_mk
    summed = graph.add("Mul", [weighted, graph.log_softmax(stacked, axis=2)])
    negative_expected = graph.add("ReduceSum", [summed, graph.last_axis()], keepdims=0)
    information = graph.add("Sub", [graph.sum_classes(negative_expected), negative_mixture_entropy])
    # Not negative by Jensen's inequality; only rounding can make it so.
    graph.add("Relu", [information], "mutual_information")
    return graph.finish(num_classes)


def is_same_graph(content: bytes | None, generated: bytes) -> bool:
    """Return whether a file contains a generated graph, possibly as another version of onnx serialises it."""
    if content is None or content == generated:
        return content is not None
    try:
        model, expected = (onnx.load_model_from_string(serialised) for serialised in (content, generated))
    except DecodeError:
        return False
    return bool(model.graph == expected.graph and list(model.opset_import) == list(expected.opset_import))


class _Graph:
    """The nodes and constants of a graph over the members' logits. Every result has a unique name."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its result: `name` (an output of the graph), or a new name."""
        name = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Callable[[], np.ndarray[Any, Any]]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value(), name)
        return name

    def weights(self) -> str:
        return self.constant("weights", lambda: np.array(self.ensemble.weights, np.float32).reshape(1, -1, 1))

    def last_axis(self) -> str:
        return self.constant("last_axis", lambda: np.array([-1], np.int64))

    def stack(self, num_classes: int) -> str:
        """Stack the logits of all members to [N,M,K]. A reshape copies nothing and is one node; unsqueezing takes one node per member."""
        members = len(self.ensemble.members)
        shape = self.constant("stacked_shape", lambda: np.array([-1, members, num_classes], np.int64))
        return self.add("Reshape", [self.add("Concat", [f"logits_{index}" for index in range(members)], axis=1), shape])

    def sum_members(self, values: str, name: str | None = None) -> str:
        """Sum [N,M,K] over the members to [N,K]."""
        return self.add("ReduceSum", [values, self.constant("member_axis", lambda: np.array([1], np.int64))], name, keepdims=0)

    def sum_classes(self, values: str) -> str:
        """Sum over the last axis, which stays with extent 1."""
        return self.add("ReduceSum", [values, self.last_axis()], keepdims=1)

    def log(self, distribution: str) -> str:
        """Compute the logarithm of probabilities, finite for 0, so that 0 log 0 is 0."""
        least = self.constant("least", lambda: np.array(np.finfo(np.float32).tiny, np.float32))
        return self.add("Log", [self.add("Max", [distribution, least])])

    def log_softmax(self, logits: str, axis: int) -> str:
        """Compute the logarithm of the softmax, finite for a logit of -inf.

        With five members, 1,000 classes and 16 images, the graph takes 120 us longer than the average only; with `log` instead of this
        function, 240 us.
        """
        lowest = self.constant("lowest", lambda: np.array(np.finfo(np.float32).min, np.float32))
        return self.add("Max", [self.add("LogSoftmax", [logits], axis=axis), lowest])

    def finish(self, num_classes: int) -> bytes:
        members = len(self.ensemble.members)
        graph = helper.make_graph(
            self.nodes,
            "average",
            [helper.make_tensor_value_info(f"logits_{m}", TensorProto.FLOAT, ["batch", num_classes]) for m in range(members)],
            [
                helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *dims])
                for output, dims in averaging_outputs(members, num_classes)
            ],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="defensemble")
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content
