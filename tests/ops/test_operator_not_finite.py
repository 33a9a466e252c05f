"""NaN and infinity, against plain ONNX Runtime.

Equal: where neither of the two multiplies a zero that the other leaves out. ONNX Runtime multiplies masked neurons and, in some of its
kernels, padding: 0 * inf is NaN there and 0 in the operator, which does not compute it. So weights that are not finite are compared in
windows without masked neurons and without padding; images that are not finite, everywhere. The maximum of a window that has a NaN and
numbers depends on the order in which each of the two reads them: it is not compared; a window of NaN gives NaN in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from tests.support.operator_programs import LANES, Array, Written, computed

SHAPE = (3, 6, 8)
VALUES = np.array([np.nan, np.inf, -np.inf], np.float32)
SAME = "kernel=3,3 strides=1,1 pads=1,1,1,1 dilations=1,1"
VALID = "kernel=3,3 strides=1,1 pads=0,0,0,0 dilations=1,1"


def plain(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], images: Array) -> Array:
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("images", 1, ["N", *images.shape[1:]])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def poisoned(batch: int, every: int, shape: Sequence[int] = SHAPE) -> Array:
    generator = np.random.default_rng(batch)
    images = generator.normal(size=(batch, *shape)).astype(np.float32)
    flat = images.reshape(-1)
    flat[generator.integers(0, flat.size, flat.size // every)] = generator.choice(VALUES, flat.size // every)
    return images


def assert_same(got: Array, want: Array, *, is_mixed: bool = True) -> None:
    kinds = [(~np.isfinite(want)).any(), np.isfinite(want).any()]
    assert all(kinds) or not is_mixed, "the test compares values of both kinds"
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)  # NaN and each infinity equal only themselves


def weights(*shape: int) -> Array:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("batch", [1, 5, 17])
@pytest.mark.parametrize("form", ["table", "packed", "dense"])
def test_images_through_a_convolution_a_residual_and_relu(lanes: str, batch: int, form: str) -> None:
    mask = np.random.default_rng(1).random((1, 3, 6, 8)) < (2 if form == "dense" else 0.4)
    constants = {"w": weights(3, 3, 3, 3), "b": weights(3), "mask": mask, "zero": np.zeros((), np.float32)}
    support = "full" if form == "dense" else "3"
    program = Written(
        SHAPE, [f"conv in=0 weight=1 bias=2 {SAME} support={support} residual=0 act=relu form={form}", "output in=1"], [], lanes
    )
    program.constants = [constants["w"], constants["b"], mask]
    nodes = [
        helper.make_node("Conv", ["images", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Where", ["mask", "conv", "zero"], ["masked"]),
        helper.make_node("Add", ["masked", "images"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    images = poisoned(batch, 30)
    assert_same(computed(program, images)[0], plain(nodes, constants, images))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("batch", [1, 5, 17])
def test_weights_and_biases_of_kept_neurons(lanes: str, batch: int) -> None:
    constants = {"w": weights(19, 3, 3, 3), "b": weights(19), "mask": np.random.default_rng(1).random((1, 19, 4, 6)) < 0.4}
    constants["w"][[1, 4, 18], 0, 1, 1] = VALUES
    constants["b"][[2, 7, 11]] = VALUES
    constants["zero"] = np.zeros((), np.float32)
    program = Written(SHAPE, [f"conv in=0 weight=1 bias=2 {VALID} support=3 residual=- act=none form=table", "output in=1"], [], lanes)
    program.constants = [constants["w"], constants["b"], constants["mask"]]
    nodes = [helper.make_node("Conv", ["images", "w", "b"], ["conv"]), helper.make_node("Where", ["mask", "conv", "zero"], ["y"])]
    images = np.random.default_rng(batch).normal(size=(batch, *SHAPE)).astype(np.float32)
    assert_same(computed(program, images)[0], plain(nodes, constants, images))


@pytest.mark.parametrize("lanes", ["1,1,1,1", "8,8,8,8", "16,16,16,16"])
@pytest.mark.parametrize(
    ("line", "node"),
    [
        ("map in=0 steps= act=relu support=full", helper.make_node("Relu", ["images"], ["y"])),
        ("map in=0 steps=mul:1 act=none support=full", helper.make_node("Mul", ["images", "half"], ["y"])),
        ("map in=0 steps=bn:2:2:2:2:1e-05 act=none support=full", helper.make_node("BatchNormalization", ["images", *["c"] * 4], ["y"])),
        ("add in=0,0 act=relu", helper.make_node("Add", ["images", "images"], ["y"])),
        ("mul in=0,0 act=none", helper.make_node("Mul", ["images", "images"], ["y"])),
        ("mean in=0", helper.make_node("GlobalAveragePool", ["images"], ["y"])),
        ("concat in=0,0", helper.make_node("Concat", ["images", "images"], ["y"], axis=1)),
        (
            "avgpool in=0 kernel=2,2 strides=1,1 pads=0,0,0,0 ceil=0 include_pad=0",
            helper.make_node("AveragePool", ["images"], ["y"], kernel_shape=[2, 2]),
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_images_through_other_instructions(line: str, node: onnx.NodeProto, lanes: str) -> None:
    constants = {"half": np.array(0.5, np.float32), "c": np.array([1, 2, 3], np.float32)}
    program = Written(SHAPE, [line, "output in=1"], list(constants.values()), lanes)
    images = poisoned(9, 20 if "mean" not in line else 200)
    got = computed(program, images)[0]
    relu = [helper.make_node("Relu", ["sum"], ["y"])] if line.startswith("add") else []
    if relu:
        node = helper.make_node("Add", ["images", "images"], ["sum"])
    assert_same(got, plain([node, *relu], constants, images))


@pytest.mark.parametrize("lanes", ["1,1,1,1", "8,8,8,8", "16,16,16,16"])
@pytest.mark.parametrize("pads", [0, 1])
def test_images_through_maxpool(pads: int, lanes: str) -> None:
    program = Written(SHAPE, [f"maxpool in=0 kernel=3,3 strides=2,2 pads={pads},{pads},{pads},{pads} ceil=0", "output in=1"], [], lanes)
    images = poisoned(9, 30)
    images[:, 0] = np.nan
    got = computed(program, images)[0]
    assert np.isnan(got[:, 0]).all()
    node = helper.make_node("MaxPool", ["images"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[pads] * 4)
    want = plain([node], {}, images)
    has_nan = plain([node], {}, np.isnan(images).astype(np.float32)) > 0
    assert 0 < has_nan[:, 1:].mean() < 1
    assert_same(np.where(has_nan, 0, got), np.where(has_nan, 0, want))


def test_sigmoid_of_infinity() -> None:
    program = Written((1, 1, 3), ["map in=0 steps= act=sigmoid support=full", "output in=1"])
    for batch in (1, 9):
        got = computed(program, np.broadcast_to(VALUES, (batch, 1, 1, 3)).copy())[0]
        np.testing.assert_array_equal(got, np.broadcast_to(np.array([np.nan, 1, 0]), (batch, 1, 1, 3)))


def test_one_image_does_not_reach_another() -> None:
    program = Written(
        SHAPE, [f"conv in=0 weight=1 bias=- {SAME} support=full residual=- act=none form=dense", "output in=1"], [weights(5, 3, 3, 3)]
    )
    images: Any = np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)
    want = computed(program, images)[0]
    images[3] = np.nan
    got = computed(program, images)[0]
    assert np.isnan(got[3]).all()
    np.testing.assert_array_equal(np.delete(got, 3, 0), np.delete(want, 3, 0))
