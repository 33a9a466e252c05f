"""Any float32 graph either converts to float16 and agrees, or is rejected for the true reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings, strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from defensemble_export import ExportError
from defensemble_export.graphs.fp16 import fp16_from_onnx
from tests.support.cast_graphs import cast_graph, cast_recipes
from tests.support.facts import raises
from tests.support.generated_graphs import SHAPE, Array, Recipe

_LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
# Largest difference of a logit, relative to the largest |logit|: ten layers of float16, each rounding by 1 / 2048.
_TOLERANCE = 2e-2
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
WEIGHT = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
IMAGES = np.random.default_rng(1).random((3, 4), np.float32)
node = helper.make_node


def answers(model: onnx.ModelProto, images: Array, level: Any, names: list[str] | None = None) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(names, {"images": images})
    return outputs


def interface(model: onnx.ModelProto) -> list[list[tuple[str, int]]]:
    """Return the names and types of the inputs that are not constants, and of the outputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    entries = [one for one in model.graph.input if one.name not in constants], model.graph.output
    return [[(one.name, one.type.tensor_type.elem_type) for one in some] for some in entries]


def check_converted(half: onnx.ModelProto, model: onnx.ModelProto, images: Array) -> None:
    """Check that the graph is valid, has a float32 interface and returns the same outputs, with and without optimisation."""
    onnx.checker.check_model(half, full_check=True)
    assert interface(half) == interface(model)
    types = {tensor.data_type for tensor in half.graph.initializer}
    assert _HALF in types or any(entry.i == _HALF for one in half.graph.node if one.op_type == "Cast" for entry in one.attribute)
    for level in _LEVELS:
        for expected, got in zip(answers(model, images, level), answers(half, images, level), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(got, expected, rtol=0, atol=_TOLERANCE * max(1e-6, float(np.abs(expected).max())))


def largest_activation(model: onnx.ModelProto, images: Array) -> float:
    """Return the largest number in the main graph. One above 65504 is infinite in float16, whatever the converter does."""
    inside = onnx.shape_inference.infer_shapes(model).graph.value_info
    constants = {name for one in model.graph.node if one.op_type == "Constant" for name in one.output}
    names = [value.name for value in inside if value.type.tensor_type.elem_type == _FLOAT and value.name not in constants]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in names:
        probe.graph.output.add(name=name)
    values = answers(probe, images, _LEVELS[0], names) if names else []
    return max((float(np.abs(value).max(initial=0)) for value in values), default=0.0)


def check_any_graph(recipe: Recipe, naming: int | None) -> None:
    model = cast_graph(recipe, naming)
    images = np.random.default_rng(recipe.seed).random((3, *SHAPE), np.float32)
    try:
        plain, optimised = (answers(model, images, level)[0] for level in _LEVELS)
    except (Fail, InvalidArgument):  # ONNX Runtime takes a free axis of 0 literally
        assume(False)
    assume(np.isfinite(plain).all() and np.abs(plain - optimised).max() <= 1e-4 * np.abs(plain).max())
    before = model.SerializeToString(deterministic=True)
    half = fp16_from_onnx(model)
    assert model.SerializeToString(deterministic=True) == before
    assert half.SerializeToString(deterministic=True) == fp16_from_onnx(model).SerializeToString(deterministic=True)
    if largest_activation(model, images) < 3e4:
        check_converted(half, model, images)


_ANY = {"recipe": cast_recipes(), "naming": st.none() | st.integers(0, 1000)}


@settings(max_examples=30)
@given(**_ANY)
def test_any_graph_converts_and_agrees(recipe: Recipe, naming: int | None) -> None:
    check_any_graph(recipe, naming)


@pytest.mark.slow
@settings(max_examples=1500)
@given(**_ANY)
def test_many_graphs_convert_and_agree(recipe: Recipe, naming: int | None) -> None:
    check_any_graph(recipe, naming)


def small(nodes: list[onnx.NodeProto], outputs: tuple[str, ...] = ("logits",), **constants: Array) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", _FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, _FLOAT, [None, 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in {"weight": WEIGHT, **constants}.items()],
    )
    opsets = {"": 20} | {one.domain: 1 for one in nodes if one.domain}
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid(*entry) for entry in opsets.items()])


def product(source: str, target: str, weight: str = "weight") -> onnx.NodeProto:
    return node("MatMul", [source, weight], [target])


def branch(output: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph(nodes, output, [], [helper.make_empty_tensor_value_info(output)])


TAKEN = [  # names that the converter would create
    node("MatMul", ["images", "weight"], ["logits_float16"], name="images_float16"),
    node("Softmax", ["logits_float16"], ["images_float16"], name="images_float16_cast"),
    product("logits_float16", "weight_float16"),
    node("Mul", ["weight_float16", "images_float16"], ["logits"], name="logits_cast"),
]
HALF_INSIDE = [
    node("Cast", ["images"], ["half"], to=_HALF),
    product("half", "features", "weight16"),
    node("Cast", ["features"], ["single"], to=_FLOAT),
    product("single", "logits"),
]
CONVERTED: dict[str, onnx.ModelProto] = {
    "a name that is taken": small(TAKEN),
    "an input as output": small([product("images", "logits")], ("logits", "images")),
    "an initialiser as output": small([product("images", "logits")], ("logits", "weight")),
    "an output that is read": small([product("images", "logits"), node("Relu", ["logits"], ["more"])], ("logits", "more")),
    "float16 inside": small(HALF_INSIDE, weight16=WEIGHT.astype(np.float16)),
    "an operator of another domain": small(
        [product("images", "a"), node("Gelu", ["a"], ["b"], domain="com.microsoft"), node("Relu", ["b"], ["c"]), product("c", "logits")]
    ),
    "an unused constant above 65504": small([product("images", "logits")], unused=np.array([7e4], np.float32)),
    "a sum of which float16 holds no term": small(
        [product("images", "a"), node("Add", ["a", "large"], ["b"]), node("Sub", ["b", "large"], ["logits"])],
        large=np.array(1e5, np.float32),
    ),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_graphs_of_this_kind_convert(kind: str) -> None:
    check_converted(fp16_from_onnx(CONVERTED[kind]), CONVERTED[kind], IMAGES)


YES = np.array(True)
BRANCHES: dict[str, Any] = {f"{which}_branch": branch(which, product("images", which)) for which in ("then", "else")}
INSIDE = node("If", ["yes"], ["logits"], **BRANCHES)
QUANTISED = [
    node("QuantizeLinear", ["images", "scale", "zero"], ["q"], name="first"),
    node("DequantizeLinear", ["q", "scale", "zero"], ["a"]),
    product("a", "logits"),
]
DOUBLE = [node("Cast", ["images"], ["a"], to=TensorProto.DOUBLE), product("a", "b", "double"), node("Cast", ["b"], ["logits"], to=_FLOAT)]
LARGE = numpy_helper.from_array(WEIGHT * np.float32(1e6))
REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "no product": (small([node("Relu", ["images"], ["logits"])]), "no Conv | Gemm, MatMul | float32"),
    "a product in a body alone": (small([INSIDE], yes=YES), "bodies | If, Loop and Scan"),
    "products in float64": (small(DOUBLE, double=WEIGHT.astype(np.float64)), "no Conv | Gemm, MatMul | float32"),
    "quantised": (small(QUANTISED, scale=np.array(0.01, np.float32), zero=np.array(0, np.int8)), "'first', QuantizeLinear"),
    "a large weight in a node": (small([node("Constant", [], ["w"], value=LARGE), product("images", "logits", "w")]), "'w' | 65504"),
    "a large weight behind a node": (
        small([node("Transpose", ["w"], ["t"]), product("images", "logits", "t")], w=WEIGHT * np.float32(1e6)), "'w' | 65504",
    ),
    "weights too small": (small([product("images", "logits", "w")], w=WEIGHT * np.float32(1e-7)), "'w' | -07"),
    "an invalid graph": (small([product("nowhere", "logits")]), "any precision | 'nowhere'"),
    "a Constant of nothing": (small([node("Constant", [], ["w"]), product("images", "logits", "w")]), "any precision | Constant"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_graphs_of_this_kind_are_rejected_with_the_reason(kind: str) -> None:
    model, reason = REFUSED[kind]
    with raises(ExportError, reason) as caught:
        fp16_from_onnx(model)
    assert ("as fp32" in str(caught.value)) != ("any precision" in str(caught.value))


def test_bodies_do_not_change_and_read_float32() -> None:
    branches: dict[str, Any] = {
        f"{which}_branch": branch(which, node("Add", ["features", "weight"], [which])) for which in ("then", "else")
    }
    condition = node("If", ["yes"], ["inner"], **branches)
    condition.name = "if"
    model = small([product("images", "features"), condition, product("inner", "logits")], yes=YES)
    images = IMAGES[:1].repeat(4, axis=0)
    half = fp16_from_onnx(model)
    check_converted(half, model, images)
    assert condition in half.graph.node
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert types == {"weight": _FLOAT, "weight_float16": _HALF, "yes": TensorProto.BOOL}
    (cast,) = [one for one in half.graph.node if "features" in one.output]
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", _FLOAT)


def test_values_out_of_the_float16_range_are_computed_in_float32() -> None:
    nodes = [
        product("images", "scores"),
        node("Softmax", ["scores"], ["p"]),
        node("Add", ["p", "epsilon"], ["q"]),
        node("Log", ["q"], ["r"]),
        node("Div", ["scores", "q"], ["s"]),
        node("Add", ["r", "s"], ["t"]),
        product("t", "logits"),
    ]
    half = fp16_from_onnx(small(nodes, epsilon=np.array(1e-9, np.float32)))
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert {types[name] for name in "pqrst"} == {_FLOAT}
