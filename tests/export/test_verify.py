"""What the comparison of an exported graph with its network notices: every batch size, real and random images, the chosen class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import VerificationError, verify_onnx
from tests import tiny

MAX_BATCH = 8
INPUTS = int(np.prod(tiny.SHAPE))


def network(weight: tiny.Array, bias: tiny.Array) -> torch.nn.Module:
    """Images to images @ weight + bias."""
    linear = torch.nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T.copy()))
        linear.bias.copy_(torch.from_numpy(bias))
    return torch.nn.Sequential(torch.nn.Flatten(), linear)


def graph_of(folder: Path, weight: tiny.Array, bias: tiny.Array, nodes: list[onnx.NodeProto], **constants: tiny.Array) -> Path:
    """The same in ONNX, plus what `nodes` compute from `images` as `fault`, which broadcasts over (N, K)."""
    computed = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["right"]),
        *nodes,
        helper.make_node("Add", ["right", "fault"], ["logits"]),
    ]
    values = {"weight": weight, "bias": bias, **constants}
    graph = helper.make_graph(
        computed,
        "faulty",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *tiny.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    path = folder / "faulty.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


WEIGHT, BIAS = tiny.weights(1), np.zeros(3, np.float32)


@pytest.mark.parametrize("batch", [1, 2, MAX_BATCH])
def test_a_fault_at_one_batch_size_is_found(tmp_path: Path, batch: int) -> None:
    nodes = [
        helper.make_node("Shape", ["images"], ["size"], start=0, end=1),
        helper.make_node("Equal", ["size", "faulty"], ["met"]),
        helper.make_node("Cast", ["met"], ["fault"], to=TensorProto.FLOAT),
    ]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, faulty=np.array([batch]))
    with pytest.raises(VerificationError, match=f"^{batch} real image.*: logits differ by 1"):
        verify_onnx(path, network(WEIGHT, BIAS), tiny.images(4), max_batch_size=MAX_BATCH)
    # Where no batch of that size is tried, the graph is right: it is the size that is noticed.
    never = graph_of(tmp_path, WEIGHT, BIAS, nodes, faulty=np.array([MAX_BATCH + 1]))
    assert verify_onnx(never, network(WEIGHT, BIAS), tiny.images(4), max_batch_size=MAX_BATCH) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "operator", "value"),
    # Random images lie in [0, 1): only the real ones reach 1, and only random ones are not whole numbers.
    [("real", "Floor", 1.0), ("random", "Ceil", 0.0)],
)
def test_a_fault_on_one_kind_of_images_is_found(tmp_path: Path, kind: str, operator: str, value: float) -> None:
    nodes = [
        helper.make_node(operator, ["flat"], ["whole"]),
        helper.make_node("ReduceMax", ["whole", "last"], ["fault"], keepdims=1),
    ]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, last=np.array([1]))
    images = np.full((4, *tiny.SHAPE), value, np.float32)
    with pytest.raises(VerificationError, match=f"^1 {kind} image: logits differ by 1"):
        verify_onnx(path, network(WEIGHT, BIAS), images, max_batch_size=MAX_BATCH)


def test_another_class_is_found_though_every_logit_is_close_enough(tmp_path: Path) -> None:
    weight, bias = np.zeros((INPUTS, 2), np.float32), np.array([0, 1.5e-5], np.float32)
    swap = np.array([0.9e-5, -0.9e-5], np.float32)
    path = graph_of(tmp_path, weight, bias, [helper.make_node("Identity", ["swap"], ["fault"])], swap=swap)
    with pytest.raises(VerificationError, match="the graph and torch choose different classes"):
        verify_onnx(path, network(weight, bias), tiny.images(4), max_batch_size=MAX_BATCH)
    # A tie within the tolerance may fall either way.
    near = np.array([0, 0.5e-5], np.float32)
    path = graph_of(tmp_path, weight, near, [helper.make_node("Identity", ["swap"], ["fault"])], swap=swap)
    assert verify_onnx(path, network(weight, near), tiny.images(4), max_batch_size=MAX_BATCH) <= 1e-5
