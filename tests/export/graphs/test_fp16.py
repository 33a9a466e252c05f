"""The conversion of real graphs to float16: what is converted, what is kept, and what cannot be converted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError
from defensemble_export.graphs.fp16 import fp16_from_onnx
from tests.support import tiny
from tests.support.converted import Array, check_contract, digits, logits, masks_of, network
from tests.support.facts import raises


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def half(model: onnx.ModelProto) -> onnx.ModelProto:
    return fp16_from_onnx(model)


def test_the_interface_is_kept_and_the_input_is_not_changed(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    half = fp16_from_onnx(model)
    assert model.SerializeToString(deterministic=True) == before
    assert half.SerializeToString(deterministic=True) == fp16_from_onnx(model).SerializeToString(deterministic=True)
    check_contract(half, model)
    assert len(masks_of(half)) == 10


@pytest.mark.parametrize("pattern", ["channel", "shared"])
def test_masks_of_every_pattern(pattern: str) -> None:
    model = network(pattern=pattern, width=4)
    check_contract(fp16_from_onnx(model), model)


def test_weights_are_float16_except_the_normalisation(half: onnx.ModelProto, model: onnx.ModelProto) -> None:
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    float32 = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    assert float32 == {"normalize.mean", "normalize.std"}
    (zero,) = {node.input[2] for node in half.graph.node if node.op_type == "Where"}
    assert types[zero] == TensorProto.FLOAT16
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            assert np.array_equal(numpy_helper.to_array(tensor), weights[tensor.name].astype(np.float16)), tensor.name
    assert len(half.SerializeToString()) < 0.56 * len(model.SerializeToString())


def test_normalisation_and_the_mean_before_the_classifier_are_float32(half: onnx.ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    for node in half.graph.node:
        if node.op_type in ("Sub", "Div", "ReduceMean"):
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
        elif node.op_type in ("Conv", "Where", "Relu", "Add", "Gemm"):
            assert types[node.output[0]] == TensorProto.FLOAT16, node.name


def test_outputs_agree(half: onnx.ModelProto, model: onnx.ModelProto) -> None:
    images = digits("test", 200)
    expected, got = logits(model, images), logits(half, images)
    assert got.dtype == np.float32
    assert np.abs(tiny.softmax(got) - tiny.softmax(expected)).max() <= 1e-2
    assert 0 < np.abs(got - expected).max(), "it was computed in float32"
    clear = np.diff(np.sort(expected, axis=1)[:, -2:])[:, 0] > 1e-2 * np.abs(expected).max()
    assert clear.any()
    assert np.array_equal(got.argmax(1)[clear], expected.argmax(1)[clear])


def with_weight(model: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    (tensor,) = [tensor for tensor in changed.graph.initializer if tensor.name == name]
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[-1] = value
    tensor.CopyFrom(numpy_helper.from_array(weights, name))
    return changed


@pytest.mark.parametrize(("value", "text"), [(7e4, "70000"), (-7e4, "70000"), (np.inf, "inf"), (np.nan, "NaN")])
def test_a_weight_out_of_the_float16_range_is_named(model: onnx.ModelProto, value: float, text: str) -> None:
    with raises(ExportError, f"'classifier.bias' | {text} | 65504"):
        fp16_from_onnx(with_weight(model, "classifier.bias", value))


def test_the_largest_and_the_smallest_weights_are_rounded_and_not_clamped(model: onnx.ModelProto) -> None:
    for value in (65504.0, -65504.0, 1e-9, 3e-8):
        half = fp16_from_onnx(with_weight(model, "classifier.bias", value))
        (tensor,) = [tensor for tensor in half.graph.initializer if tensor.name == "classifier.bias"]
        assert numpy_helper.to_array(tensor)[-1] == np.float16(value)


def test_a_graph_that_is_already_converted_is_rejected(half: onnx.ModelProto) -> None:
    with raises(ExportError, "fp16 | no Conv"):
        fp16_from_onnx(half)


def small_graph(nodes: list[onnx.NodeProto], constants: dict[str, Array]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 2, 1, 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def test_a_constant_used_in_both_precisions_is_stored_in_both() -> None:
    half = np.full((1,), 0.5, np.float32)
    nodes = [  # without names, as from other exporters
        helper.make_node("Sub", ["images", "half"], ["normal"]),
        helper.make_node("Conv", ["normal", "weight"], ["features"]),
        helper.make_node("Mul", ["features", "half"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["logits"], axis=1),
    ]
    model = small_graph(nodes, {"half": half, "weight": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1)})
    converted = fp16_from_onnx(model)
    types = {tensor.name: tensor.data_type for tensor in converted.graph.initializer}
    assert types == {"half": TensorProto.FLOAT, "half_float16": TensorProto.FLOAT16, "weight": TensorProto.FLOAT16}
    images = tiny.images(5, shape=(2, 1, 1))
    assert np.abs(logits(converted, images) - tiny.softmax((images - 0.5)[..., 0, 0] / 2)[..., None, None]).max() < 1e-3


def test_local_functions_are_rejected() -> None:
    model = onnx.load_model_from_string(tiny.linear_onnx(0))
    identity = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("own", "Nothing", ["x"], ["y"], [identity], [helper.make_opsetid("", 20)]))
    with raises(ExportError, "Nothing | inline"):
        fp16_from_onnx(model)
