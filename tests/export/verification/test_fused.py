"""The comparison of a fused graph with its ensemble detects differences in each output, batch size and kind of images."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError, VerificationError, fused_onnx, verify_fused
from tests.export.graphs.test_fusion import GOOD, OUTPUTS, ensemble_of
from tests.support import tiny
from tests.support.facts import raises


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_a_different_output_is_detected(output: str) -> None:
    members, ensemble = [tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble_of(2)
    model = onnx.load_model_from_string(fused_onnx(members, ensemble))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["differing" if name == output else name for name in names]
    model.graph.node.append(helper.make_node("Mul", ["differing", "factor"], [output]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 + 1e-4, np.float32), "factor"))
    with pytest.raises(VerificationError, match=f"1 random image: {output}: values differ by .*serve the ensemble"):
        verify_fused(model.SerializeToString(), members, ensemble, None, max_batch_size=2)


def test_a_difference_in_the_largest_batch_is_detected() -> None:
    members, ensemble = [tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble_of(2)
    black = np.zeros((3, *tiny.SHAPE), np.float32)
    faulty = onnx.load_model_from_string(fused_onnx(members, ensemble))
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["brightest"], keepdims=0),
        helper.make_node("Equal", ["brightest", "none"], ["is_black"]),
        helper.make_node("Shape", ["images"], ["size"], start=0, end=1),
        helper.make_node("Equal", ["size", "seven"], ["is_seven"]),
        helper.make_node("And", ["is_black", "is_seven"], ["met"]),
        helper.make_node("Cast", ["met"], ["fault"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["right", "fault"], ["entropy"]),
    ]
    next(node for node in faulty.graph.node if node.output[0] == "entropy").output[0] = "right"
    faulty.graph.node.extend(nodes)
    faulty.graph.initializer.extend(
        [numpy_helper.from_array(np.array(0, np.float32), "none"), numpy_helper.from_array(np.array([7], np.int64), "seven")]
    )
    content = faulty.SerializeToString()
    verify_fused(content, members, ensemble, black, max_batch_size=6)
    verify_fused(content, members, ensemble, None, max_batch_size=7)
    with pytest.raises(VerificationError, match="7 real images: entropy: values differ"):
        verify_fused(content, members, ensemble, black, max_batch_size=7)


def test_a_graph_that_is_not_fused_is_rejected() -> None:
    members, ensemble = [tiny.linear_onnx(1), tiny.linear_onnx(2)], ensemble_of(2)
    with pytest.raises(VerificationError, match=r"\['images'\] to \['logits'\]"):
        verify_fused(members[0], members, ensemble, None, max_batch_size=2)
    with pytest.raises(
        VerificationError,
        match=r"member_probabilities: the fused graph returns the shape \(1, 1, 3\), but the ensemble returns \(1, 2, 3\)",
    ):
        verify_fused(fused_onnx(members[:1], ensemble_of(1)), members, ensemble, None, max_batch_size=2)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((2, 1, 8, 2), np.float32), "verification | (N, 1, 4, 4) | (2, 1, 8, 2)"),
        (np.zeros((0, *tiny.SHAPE), np.float32), "at least one"),
        (np.zeros((2, *tiny.SHAPE)), "float64"),
        (np.full((2, *tiny.SHAPE), 2, np.float32), "2 to 2"),
        (np.full((2, *tiny.SHAPE), np.nan, np.float32), "NaN"),
    ],
)
def test_invalid_images_are_rejected(images: tiny.Array, text: str) -> None:
    with raises(ExportError, text):
        verify_fused(fused_onnx([GOOD], ensemble_of(1)), [GOOD], ensemble_of(1), images, max_batch_size=2)


def test_the_measurements_are_json() -> None:
    measured = verify_fused(fused_onnx([GOOD], ensemble_of(1)), [GOOD], ensemble_of(1), tiny.images(2), max_batch_size=1)
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["batches"] == [1, 2]
