"""The comparison of an exported graph with its network detects differences at every batch size, kind of images and class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import VerificationError, reference_from_module, verify_onnx
from defensemble_export.verification.network import LogitsFunction
from defensemble_export.verification.tolerances import PRECISIONS, TOLERANCES, Tolerance
from tests.support import tiny
from tests.support.facts import raises

MAX_BATCH = 8
INPUTS = int(np.prod(tiny.SHAPE))


def network(weight: tiny.Array, bias: tiny.Array) -> LogitsFunction:
    """Return a function that computes images @ weight + bias."""
    linear = torch.nn.Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight.T.copy()))
        linear.bias.copy_(torch.from_numpy(bias))
    return reference_from_module(torch.nn.Sequential(torch.nn.Flatten(), linear))


def graph_of(folder: Path, weight: tiny.Array, bias: tiny.Array, nodes: list[onnx.NodeProto], **constants: tiny.Array) -> Path:
    """Write the same as an ONNX file, plus `fault`, which `nodes` compute from `images` and which broadcasts over (N, K)."""
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
def test_a_difference_at_one_batch_size_is_detected(tmp_path: Path, batch: int) -> None:
    nodes = [
        helper.make_node("Shape", ["images"], ["size"], start=0, end=1),
        helper.make_node("Equal", ["size", "faulty"], ["met"]),
        helper.make_node("Cast", ["met"], ["fault"], to=TensorProto.FLOAT),
    ]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, faulty=np.array([batch]))
    with raises(VerificationError, f"{batch} real image{'s' * (batch > 1)} | logits | 1"):
        verify_onnx(path, network(WEIGHT, BIAS), tiny.images(4), max_batch_size=MAX_BATCH)
    # At other batch sizes the graph is correct, so the size is what was detected.
    never = graph_of(tmp_path, WEIGHT, BIAS, nodes, faulty=np.array([MAX_BATCH + 1]))
    assert verify_onnx(never, network(WEIGHT, BIAS), tiny.images(4), max_batch_size=MAX_BATCH).largest_logit_difference <= 1e-5


@pytest.mark.parametrize(
    ("kind", "operator", "value"),
    # Random images are in [0, 1): only real images reach 1, and only random ones are not whole numbers.
    [("real", "Floor", 1.0), ("random", "Ceil", 0.0)],
)
def test_a_difference_on_one_kind_of_images_is_detected(tmp_path: Path, kind: str, operator: str, value: float) -> None:
    nodes = [
        helper.make_node(operator, ["flat"], ["whole"]),
        helper.make_node("ReduceMax", ["whole", "last"], ["fault"], keepdims=1),
    ]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, last=np.array([1]))
    images = np.full((4, *tiny.SHAPE), value, np.float32)
    with raises(VerificationError, f"1 {kind} image | logits"):
        verify_onnx(path, network(WEIGHT, BIAS), images, max_batch_size=MAX_BATCH)


def test_another_class_is_detected_although_every_logit_is_close(tmp_path: Path) -> None:
    weight, bias = np.zeros((INPUTS, 2), np.float32), np.array([0, 1.5e-5], np.float32)
    swap = np.array([0.9e-5, -0.9e-5], np.float32)
    path = graph_of(tmp_path, weight, bias, [helper.make_node("Identity", ["swap"], ["fault"])], swap=swap)
    with pytest.raises(VerificationError, match="1 of 1 images get different classes from the graph and torch"):
        verify_onnx(path, network(weight, bias), tiny.images(4), max_batch_size=MAX_BATCH)
    # In a tie within the tolerance, either class is correct.
    near = np.array([0, 0.5e-5], np.float32)
    path = graph_of(tmp_path, weight, near, [helper.make_node("Identity", ["swap"], ["fault"])], swap=swap)
    assert verify_onnx(path, network(weight, near), tiny.images(4), max_batch_size=MAX_BATCH).largest_logit_difference <= 1e-5


def flipping(folder: Path, flips: int, count: int = 100) -> tuple[Path, LogitsFunction, tiny.Array, tiny.Array]:
    """Return a graph with another class for the `flips` of `count` images whose first pixel is 1, its reference, images and classes."""
    images = tiny.images(count) * np.float32(0.5)
    images[:flips, 0, 0, 0] = 1
    weight, bias = np.zeros((INPUTS, 2), np.float32), np.array([0, 1], np.float32)
    nodes = [
        helper.make_node("Gather", ["flat", "first"], ["pixel"], axis=1),
        helper.make_node("Floor", ["pixel"], ["marked"]),
        helper.make_node("Mul", ["marked", "swap"], ["fault"]),
    ]
    path = graph_of(folder, weight, bias, nodes, first=np.array([0]), swap=np.array([2, 0], np.float32))
    return path, network(weight, bias), images, np.ones(count, np.int64)


@pytest.mark.parametrize("count", [100, 3000])
def test_fp16_allows_one_image_in_a_thousand_to_change_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", Tolerance(agreement=TOLERANCES["fp16"].agreement, probabilities=1.0))
    allowed = max(1, count // 1000)
    path, reference, images, labels = flipping(tmp_path, allowed, count)
    verification = verify_onnx(path, reference, images, max_batch_size=MAX_BATCH, precision="fp16", labels=labels)
    assert (verification.n, verification.agreement, verification.graph_optimisation) == (count, 1 - allowed / count, "all")
    assert (verification.accuracy, verification.reference_accuracy) == (1 - allowed / count, 1.0)
    path, reference, images, labels = flipping(tmp_path, allowed + 1, count)
    with pytest.raises(VerificationError, match=f"{allowed + 1} of {count} images get different classes .*at least 99.9 %"):
        verify_onnx(path, reference, images, max_batch_size=MAX_BATCH, precision="fp16", labels=labels)


@pytest.mark.parametrize("kind", ["real", "random"])
def test_fp16_probabilities_are_compared_on_both_kinds_of_images(tmp_path: Path, kind: str) -> None:
    weight, bias = np.zeros((INPUTS, 2), np.float32), np.zeros(2, np.float32)
    # Real images are 1 everywhere; random ones are below.
    nodes = [
        helper.make_node("Floor" if kind == "real" else "Ceil", ["flat"], ["whole"]),
        helper.make_node("ReduceMax", ["whole", "last"], ["marked"], keepdims=1),
        helper.make_node("Mul", ["marked", "shift"], ["fault"]),
    ]
    images = np.full((4, *tiny.SHAPE), 1.0 if kind == "real" else 0.0, np.float32)
    for shift, holds in ((0.039, True), (0.041, False)):  # of a logit: a quarter of that in probability
        path = graph_of(tmp_path, weight, bias, nodes, last=np.array([1]), shift=np.array([shift, 0], np.float32))
        if holds:
            verification = verify_onnx(path, network(weight, bias), images, max_batch_size=MAX_BATCH, precision="fp16")
            assert verification.largest_probability_difference == pytest.approx(shift / 4 if kind == "real" else 0, abs=1e-5)
        else:
            with raises(VerificationError, f"1 {kind} image | probabilities | 0.01"):
                verify_onnx(path, network(weight, bias), images, max_batch_size=MAX_BATCH, precision="fp16")


def test_int8_reports_missed_goals_and_rejects_a_bad_graph(tmp_path: Path) -> None:
    for flips, missed in ((0, 0), (2, 1), (3, 2), (10, 2)):
        path, reference, images, labels = flipping(tmp_path, flips)
        verification = verify_onnx(path, reference, images, max_batch_size=MAX_BATCH, precision="int8", labels=labels)
        assert (verification.agreement, verification.graph_optimisation) == (1 - flips / 100, "none")
        assert len(verification.goals_missed) == missed, verification.goals_missed
        assert verification.to_values()["goals_missed"] == verification.goals_missed
    path, reference, images, labels = flipping(tmp_path, 11)
    with pytest.raises(VerificationError, match=r"11 of 100 images get different classes .*at least 90 % must get the same class"):
        verify_onnx(path, reference, images, max_batch_size=MAX_BATCH, precision="int8", labels=labels)


def test_int8_outputs_that_depend_on_the_batch_are_detected(tmp_path: Path) -> None:
    nodes = [helper.make_node("ReduceMean", ["right", "first"], ["mean"]), helper.make_node("Mul", ["mean", "tenth"], ["fault"])]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, first=np.array([0]), tenth=np.array(0.1, np.float32))
    with pytest.raises(VerificationError, match=r"a batch of \d: logits differ by"):
        verify_onnx(path, network(WEIGHT, BIAS), tiny.images(100), max_batch_size=MAX_BATCH, precision="int8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_values_that_are_not_finite_are_detected_in_every_precision(tmp_path: Path, precision: str) -> None:
    nodes = [helper.make_node("Identity", ["nan"], ["fault"])]
    path = graph_of(tmp_path, WEIGHT, BIAS, nodes, nan=np.array(np.nan, np.float32))
    with pytest.raises(VerificationError, match="not finite"):
        verify_onnx(path, network(WEIGHT, BIAS), tiny.images(4), max_batch_size=MAX_BATCH, precision=precision)
