"""The two small ONNX graphs that average an ensemble's members and measure how far they disagree.

With weights w (normalised to sum 1) and s_m = softmax(logits_m): ``probabilities`` is sum w_m s_m or softmax(sum w_m logits_m);
``entropy`` = H(probabilities) and ``mutual_information`` = H(sum w_m s_m) - sum w_m H(s_m), in nats. They are two models because Triton's
ensemble scheduler prunes whole steps only, and ONNX Runtime computes a whole graph whatever is asked of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from defensemble_repository.configs import uncertainty_outputs
from defensemble_repository.ensemble import Ensemble

# What every file says that we write; libraries' newest defaults are ahead of what servers load.
IR_VERSION = 10
OPSET = 20


def average_onnx(ensemble: Ensemble, num_classes: int) -> bytes:
    """The graph of ``average_<digest>``: ``logits_m`` FP32 [N,K], for each member, to ``probabilities`` FP32 [N,K]."""
    graph = _Graph(ensemble)
    stacked = graph.stack()
    probabilities = graph.probabilities(stacked)
    return graph.finish({probabilities: ("probabilities", [num_classes])}, num_classes, "average")


def uncertainty_onnx(ensemble: Ensemble, num_classes: int) -> bytes:
    """The graph of ``uncertainty_<digest>``: the same inputs to the measures that ``uncertainty_outputs`` names."""
    graph = _Graph(ensemble)
    stacked = graph.stack()
    members = graph.add("Softmax", [stacked], axis=2)
    mixture = graph.weighted_sum(members)
    probabilities = mixture if ensemble.average == "probabilities" else graph.probabilities(stacked)
    entropy = graph.entropy(probabilities)  # [N,1]
    mixture_entropy = entropy if probabilities == mixture else graph.entropy(mixture)
    member_entropy = graph.entropy(members)  # [N,M,1]
    expected = graph.weighted_sum(member_entropy)  # [N,1]
    # Never negative by Jensen's inequality; rounding alone could make it so.
    information = graph.add("Relu", [graph.add("Sub", [mixture_entropy, expected])])
    names = uncertainty_outputs(len(ensemble.members), num_classes)
    return graph.finish(dict(zip((members, entropy, information), names, strict=True)), num_classes, "uncertainty")


def is_same_graph(content: bytes | None, generated: bytes) -> bool:
    """Whether the bytes of a file are those of a graph that was generated, or of the same one as another version of onnx serialises it."""
    if content is None or content == generated:
        return content is not None
    try:
        one, another = (onnx.load_model_from_string(each) for each in (content, generated))
    except DecodeError:
        return False
    return bool(one.graph == another.graph and list(one.opset_import) == list(another.opset_import))


class _Graph:
    """Nodes and constants of a graph over the members' logits, each result under a name of its own."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: list[str], axis: int | None = None, keepdims: int | None = None) -> str:
        attributes: dict[str, Any] = {key: value for key, value in (("axis", axis), ("keepdims", keepdims)) if value is not None}
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Callable[[], np.ndarray[Any, Any]]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value(), name)
        return name

    def stack(self) -> str:
        """All members' logits, [N,M,K]."""
        axis = self.constant("member_axis", lambda: np.array([1], np.int64))
        columns = [self.add("Unsqueeze", [f"logits_{index}", axis]) for index in range(len(self.ensemble.members))]
        return self.add("Concat", columns, axis=1)

    def weighted_sum(self, values: str) -> str:
        """Sum over members of w_m times [N,M,X]: [N,X]."""
        weights = self.constant("weights", lambda: np.array(self.ensemble.weights, np.float32).reshape(1, -1, 1))
        axis = self.constant("member_axis", lambda: np.array([1], np.int64))
        return self.add("ReduceSum", [self.add("Mul", [values, weights]), axis], keepdims=0)

    def probabilities(self, stacked: str) -> str:
        if self.ensemble.average == "probabilities":
            return self.weighted_sum(self.add("Softmax", [stacked], axis=2))
        return self.add("Softmax", [self.weighted_sum(stacked)], axis=1)

    def entropy(self, distribution: str) -> str:
        """-sum p log p over the last axis, which is kept; 0 log 0 is 0."""
        least = self.constant("least", lambda: np.array(np.finfo(np.float32).tiny, np.float32))
        last = self.constant("last_axis", lambda: np.array([-1], np.int64))
        logarithm = self.add("Log", [self.add("Max", [distribution, least])])
        return self.add("Neg", [self.add("ReduceSum", [self.add("Mul", [distribution, logarithm]), last], keepdims=1)])

    def finish(self, outputs: dict[str, tuple[str, list[int]]], num_classes: int, kind: str) -> bytes:
        for result, (output, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [result], [output], name=output))
        graph = helper.make_graph(
            self.nodes,
            kind,
            [
                helper.make_tensor_value_info(f"logits_{m}", TensorProto.FLOAT, ["batch", num_classes])
                for m in range(len(self.ensemble.members))
            ],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", *dims]) for output, dims in outputs.values()],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="defensemble")
        onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content
