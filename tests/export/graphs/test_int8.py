"""The quantisation of real graphs to int8: the structure for TensorRT, what is kept, ranges compared with numpy, and every rejection."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, strategies as st
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.int8 import _least_error_range, int8_from_onnx, masked_region
from tests.support import tiny
from tests.support.converted import Array, check_contract, digits, logits, network
from tests.support.facts import raises


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def images() -> Array:
    return digits("train", 64)


@pytest.fixture(scope="module")
def quantised(model: onnx.ModelProto, images: Array) -> onnx.ModelProto:
    return int8_from_onnx(model, images)


def test_the_interface_is_kept_and_the_input_is_not_changed(model: onnx.ModelProto, images: Array) -> None:
    before = model.SerializeToString(deterministic=True)
    check_contract(int8_from_onnx(model, images), model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("pattern", ["channel", "shared"])
def test_masks_of_every_pattern_are_kept_in_float_and_int8(images: Array, pattern: str) -> None:
    model = network(pattern=pattern, width=4)
    check_contract(int8_from_onnx(model, images), model)
    check_contract(int8_from_onnx(model, images, float_nodes=[]), model)


def test_the_same_images_give_the_same_bytes_and_leave_no_file(
    model: onnx.ModelProto,
    images: Array,
    quantised: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    again = int8_from_onnx(model, images.copy())
    assert again.SerializeToString(deterministic=True) == quantised.SerializeToString(deterministic=True)
    assert int8_from_onnx(model, digits("train", 32)).SerializeToString(deterministic=True) != again.SerializeToString(deterministic=True)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_every_pair_is_symmetric_and_weights_are_per_channel(quantised: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    pairs = [node for node in quantised.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.domain for node in quantised.graph.node} == {""}
    weights = []
    for node in pairs:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert zero.dtype == np.int8, node.name
        assert not zero.any(), node.name
        assert (scale > 0).all(), node.name
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            weights.append(weight := constants[node.input[0]])
            assert weight.dtype == np.int8, "no INT32 bias"
            assert weight.min() >= -127
            assert scale.shape == weight.shape[:1]
            assert [one.i for one in node.attribute if one.name == "axis"] == [0]
            assert (np.abs(weight).reshape(len(weight), -1).max(axis=1) == 127).all(), "each channel uses its whole range"
        else:
            assert scale.shape == ()
    assert len(weights) == 9, "eight of the convolutions behind the masked region, and the classifier"


def test_only_the_masked_region_stays_float32(model: onnx.ModelProto, quantised: onnx.ModelProto, images: Array) -> None:
    maker = {name: node for node in quantised.graph.node for name in node.output}
    kept = masked_region(model)
    weight = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    borders = [weight[name] for name in kept[10:]]
    assert borders == ["block3.0.conv1.weight", "block3.0.shortcut.conv.weight"], "they read what the masked region gives"
    for node in quantised.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            makers = [maker[name].op_type if name in maker else "constant" for name in node.input]
            if node.name in kept:
                assert makers[1:] == ["constant", "constant"]
            else:
                assert makers == ["DequantizeLinear", "DequantizeLinear", "constant"]
    everything = int8_from_onnx(model, images, float_nodes=[])
    assert sum(node.op_type == "DequantizeLinear" and len(node.attribute) > 0 for node in everything.graph.node) == 21


def test_weights_are_within_half_a_step_of_float32(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    names = [name.removesuffix("_quantized") for name in after if name.endswith("_quantized")]
    assert len(names) == 9
    for name in names:
        assert name not in after
        step = after[f"{name}_scale"].reshape(-1, *[1] * (before[name].ndim - 1))
        assert (np.abs(after[f"{name}_quantized"] * step - before[name]) <= step * 0.5001).all()


def test_outputs_are_close_to_float32_and_the_batch_is_free(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    images = digits("test", 200)
    expected, got = logits(model, images), logits(quantised, images)
    assert got.dtype == np.float32
    spread = expected.std()
    assert 0 < np.abs(got - expected).max() < 0.5 * spread
    assert np.sqrt(((got - expected) ** 2).mean()) < 0.1 * spread
    for batch in (1, 3):
        assert np.abs(logits(quantised, images[:batch]) - got[:batch]).max() < 1e-4 * np.abs(got).max()


GOOD = tiny.images(4, shape=(1, 16, 16))


@pytest.mark.parametrize(
    ("calibration", "text"),
    [
        (GOOD[:0], "at least one | (0, 1, 16, 16)"),
        (GOOD[0], "(N, 1, 16, 16) | (1, 16, 16)"),
        (GOOD[..., :8], "(N, 1, 16, 16) | (4, 1, 16, 8)"),
        (np.array(1, np.float32), "(N, 1, 16, 16) | ()"),
        (GOOD.astype(np.float64), "float32 | float64"),
        ((GOOD * 255).astype(np.uint8), "float32 | uint8"),
        (GOOD * 255, "[0, 1] | divide by 255"),
        (GOOD - 1, "[0, 1] | -"),
        (GOOD * np.float32("nan"), "finite | NaN"),
        (np.repeat(GOOD[:1], 5, axis=0), "same | 5"),
        (np.zeros_like(GOOD), "same | 4"),
        (GOOD[:1], "same | 1"),
    ],
)
def test_unsuitable_calibration_images_are_rejected(model: onnx.ModelProto, calibration: Array, text: str) -> None:
    with raises(ExportError, f"calibration | {text}"):
        int8_from_onnx(model, calibration)


def test_an_unknown_float_node_is_named(model: onnx.ModelProto) -> None:
    with raises(ExportError, "nowhere | Conv | Gemm"):
        int8_from_onnx(model, GOOD, float_nodes=["nowhere"])


def test_a_graph_with_nothing_to_quantise_is_rejected(model: onnx.ModelProto) -> None:
    everything = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    with pytest.raises(ExportError, match="quantise"):
        int8_from_onnx(model, GOOD, float_nodes=everything)


def too_large(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph with weights above the largest float16, all of which are multiplied in a MatMul."""
    product = helper.make_node("MatMul", ["flat", "w"], ["logits"])
    weights = numpy_helper.from_array(np.full((int(np.prod(GOOD.shape[1:])), 10), 1e6, np.float32), "w")
    nodes = [helper.make_node("Flatten", ["images"], ["flat"]), product]
    graph = helper.make_graph(nodes, "g", [model.graph.input[0]], [model.graph.output[0]], [weights])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("convert", "works"),
    [
        (lambda model: model, True),
        (lambda model: int8_from_onnx(model, GOOD, float_nodes=[]), False),
        (fp16_from_onnx, False),
        (too_large, False),
    ],
)
def test_fp16_is_suggested_only_where_it_works(
    model: onnx.ModelProto, convert: Callable[[onnx.ModelProto], onnx.ModelProto], works: bool
) -> None:
    graph = convert(model)
    everything = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    with raises(ExportError, "fp32") as caught:
        int8_from_onnx(graph, GOOD, float_nodes=everything if works else None)
    assert ("as fp16" in str(caught.value)) == works
    with nullcontext() if works else pytest.raises(ExportError):
        fp16_from_onnx(graph)


def test_a_tensor_that_is_not_finite_is_named(model: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    (tensor,) = [tensor for tensor in broken.graph.initializer if tensor.name == "normalize.std"]
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), tensor.name))
    with raises(ExportError, "finite | calibration"):
        int8_from_onnx(broken, GOOD, float_nodes=[])


def convolution(batch: int | str, *, dead: bool = False) -> onnx.ModelProto:
    """Return a graph of one convolution of the images, without node names, and its mask behind a BatchNormalization."""
    weight = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    weight[1] = 0
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["features"]),
        helper.make_node("BatchNormalization", ["features", "ones", "zeros", "zeros", "ones"], ["normal"], epsilon=0.0),
        helper.make_node("Where", ["mask", "normal", "zero"], ["masked"]),
        helper.make_node("Flatten", ["masked"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["logits"], transB=1),
    ]
    constants = {
        "weight": weight * (not dead),
        "ones": ones,
        "zeros": zeros,
        "zero": np.float32(0),
        "mask": np.array([1, 1, 0], bool).reshape(3, 1, 1),
    }
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**constants, "matrix": np.eye(3, dtype=np.float32)}.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def test_a_mask_behind_batch_normalisation_is_found() -> None:
    model = convolution("batch")
    for node in model.graph.node:
        node.name = node.op_type
    assert masked_region(model) == ["Conv"]


@pytest.mark.parametrize("batch", ["batch", 3])
def test_a_graph_with_a_free_or_fixed_batch_is_quantised(batch: int | str) -> None:
    model, images = convolution(batch), tiny.images(8)
    quantised = int8_from_onnx(model, images, float_nodes=[])
    sample = images[:3]
    assert np.abs(logits(quantised, sample) - logits(model, sample)).max() < 0.05 * np.abs(logits(model, sample)).max()


def held_by(kind: str, value: Array) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Return nodes that compute `matrix` from constants, and the constants."""
    if kind == "Constant":
        return [helper.make_node("Constant", [], ["matrix"], value=numpy_helper.from_array(value))], {}
    if kind == "Identity":
        return [helper.make_node("Identity", ["held"], ["matrix"])], {"held": value}
    if kind == "Reshape":
        shape = helper.make_node("Constant", [], ["shape"], value_ints=value.shape)
        return [shape, helper.make_node("Reshape", ["held", "shape"], ["matrix"])], {"held": value.ravel()}
    if kind == "Cast":
        return [helper.make_node("Cast", ["held"], ["matrix"], to=TensorProto.FLOAT)], {"held": value.astype(np.float64)}
    assert kind == "Split"
    split = helper.make_node("Split", ["held"], ["matrix", "bias"], num_outputs=2)
    return [split, helper.make_node("Identity", ["bias"], ["unread"])], {"held": np.concatenate([value, value])}


def with_matrix(nodes: list[onnx.NodeProto], held: dict[str, Array]) -> onnx.ModelProto:
    """Return `convolution`, whose matrix `nodes` compute."""
    model = convolution("batch")
    kept = [*nodes, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(kept)
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "matrix"))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in held.items())
    return model


@pytest.mark.parametrize("kind", ["Constant", "Identity", "Reshape", "Cast", "Split"])
def test_a_weight_computed_from_constants_is_int8(kind: str) -> None:
    images, value = tiny.images(8), np.eye(3, dtype=np.float32)
    model = with_matrix(*held_by(kind, value))
    quantised, expected = int8_from_onnx(model, images, float_nodes=[]), int8_from_onnx(convolution("batch"), images, float_nodes=[])
    assert np.array_equal(logits(quantised, images), logits(expected, images))
    assert not {"held", "shape"} & {tensor.name for tensor in quantised.graph.initializer}
    assert len(quantised.graph.node) == len(expected.graph.node)


def test_operators_of_other_domains_do_not_change() -> None:
    model, images = convolution("batch"), tiny.images(8)
    model.graph.node[0].domain = "com.microsoft.nchwc"
    with raises(ExportError, "Conv_0 | Conv or Gemm"):
        int8_from_onnx(model, images, float_nodes=["Conv_0"])
    assert masked_region(model) == []


def test_a_weight_computed_from_the_images_stays_float32() -> None:
    images = tiny.images(8)
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["largest"], keepdims=0),
        helper.make_node("Div", ["largest", "largest"], ["one"]),
        helper.make_node("Mul", ["held", "one"], ["matrix"]),
    ]
    model = with_matrix(nodes, {"held": np.eye(3, dtype=np.float32)})
    quantised = int8_from_onnx(model, images, float_nodes=[])
    (gemm,) = [node for node in quantised.graph.node if node.op_type == "Gemm"]
    assert gemm.input[1] == "matrix"
    assert np.abs(logits(quantised, images) - logits(model, images)).max() < 0.05 * np.abs(logits(model, images)).max()


def test_a_float16_graph_is_rejected(model: onnx.ModelProto) -> None:
    with raises(ExportError, "quantise | Conv or Gemm | float32"):
        int8_from_onnx(fp16_from_onnx(model), GOOD)


def test_batches_are_small_if_their_values_are_large(
    model: onnx.ModelProto, images: Array, quantised: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defensemble_export.graphs.int8._MAX_BATCH_BYTES", 1)  # one at a time
    before = {one.name: numpy_helper.to_array(one) for one in quantised.graph.initializer}
    after = {one.name: numpy_helper.to_array(one) for one in int8_from_onnx(model, images).graph.initializer}
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], rtol=0.02) for name in before if name.endswith("_scale"))


def test_a_graph_with_two_inputs_is_rejected(model: onnx.ModelProto) -> None:
    two = onnx.ModelProto()
    two.CopyFrom(model)
    two.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with raises(ExportError, "one input | 2 | images, more"):
        int8_from_onnx(two, GOOD)


def test_tensors_that_are_always_zero_are_quantised() -> None:
    model = convolution("batch", dead=True)
    quantised = int8_from_onnx(model, tiny.images(8), float_nodes=[])
    assert not logits(quantised, tiny.images(2)).any()


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from(["normal", "exponential", "uniform"]))
def test_the_range_has_the_least_error_in_numpy(seed: int, scale: float, kind: str) -> None:
    generator = np.random.default_rng(seed)
    values = np.abs(getattr(generator, kind)(size=500)) * scale
    largest = float(values.max())
    chosen = _least_error_range(np.histogram(values, 4096, (0, largest))[0], largest)
    assert 0 < chosen <= largest

    def error(limit: float) -> float:
        step = limit / 127
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())

    others = min(error(largest * share) for share in np.linspace(0.05, 1, 60))
    # The histogram resolves a 4096th of the largest value; a step is at most 32 of these.
    assert error(chosen) <= others * 1.1 + 1e-12 * scale**2
