"""Fusing, quantising and importing graphs with bodies of If, Loop and Scan, and with names that converters create."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError, fused_onnx, verify_fused
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.graphs.int8 import int8_from_onnx, masked_region
from defensemble_export.graphs.traversal import names_of, rename
from tests.export.graphs.test_fusion import ensemble_of
from tests.export.graphs.test_generated import answer, int8_answers
from tests.support import tiny
from tests.support.facts import raises
from tests.support.foreign_models import Array, write

IMAGES = tiny.images(6)
FLAT = helper.make_node("Flatten", ["images"], ["flat"])
CLASSIFY = helper.make_node("MatMul", ["flat", "weights"], ["product"])


def network(
    nodes: Sequence[onnx.NodeProto], batch: str | int | None = "N", classes: str | int | None = 3, **constants: Any
) -> onnx.ModelProto:
    """Return a graph from `images` [N,1,4,4] to `logits` [N,3] with `weights`, `yes` (true) and further constants."""
    values = {"weights": tiny.weights(1), "yes": np.array(True), **constants}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *tiny.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def branch(nodes: Sequence[onnx.NodeProto], output: str, **constants: Any) -> onnx.GraphProto:
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], tensors)


def either(body: onnx.GraphProto, other: onnx.GraphProto | None = None, output: str = "logits") -> onnx.NodeProto:
    return helper.make_node("If", ["yes"], [output], then_branch=body, else_branch=body if other is None else other)


def fused_members(*members: onnx.ModelProto) -> Array:
    """Return the members' probabilities from their fused graph, after verifying it."""
    files = [member.SerializeToString() for member in members]
    ensemble = ensemble_of(len(files))
    fused = fused_onnx(files, ensemble)
    verify_fused(fused, files, ensemble, IMAGES, max_batch_size=3)
    return answer(fused, IMAGES, "member_probabilities")


def expected(*models: onnx.ModelProto) -> Array:
    return tiny.softmax(np.stack([answer(model, IMAGES) for model in models], 1).astype(np.float64))


@pytest.mark.parametrize("name", ["weights", "flat", "images", "unknown", "logits"])
def test_a_body_reads_its_own_constant_of_an_outer_name(name: str) -> None:
    """The second member shares `flat` and `weights` with the first; the body's own tensors of these names must not be replaced."""

    def member(factor: float) -> onnx.ModelProto:
        body = branch([helper.make_node("Mul", ["product", name], ["scaled"])], "scaled", **{name: factor})
        return network([FLAT, CLASSIFY, either(body)])

    if name == "logits":  # the result of the If: no initialiser may have this name
        body = branch([helper.make_node("Neg", ["product"], ["logits"])], "logits")
        models = [network([FLAT, CLASSIFY, either(body)]), network([FLAT, CLASSIFY, helper.make_node("Abs", ["product"], ["logits"])])]
    else:
        models = [member(2), member(-3)]
    np.testing.assert_allclose(fused_members(*models), expected(*models), atol=1e-6)


def test_nested_bodies_read_shared_constants_of_the_first_member() -> None:
    def member(sign: str) -> onnx.ModelProto:
        inner = branch([helper.make_node("Mul", ["flat", "gain"], ["a"]), helper.make_node("MatMul", ["a", "weights"], ["b"])], "b")
        outer = branch(
            [helper.make_node("If", ["yes"], ["c"], then_branch=inner, else_branch=inner), helper.make_node(sign, ["c"], ["d"])], "d"
        )
        return network([FLAT, either(outer)], gain=np.float32(0.5))

    models = [member("Neg"), member("Abs")]
    model = onnx.load_model_from_string(fused_onnx(models, ensemble_of(2)))
    assert [node.op_type for node in model.graph.node].count("Flatten") == 1
    kept = [tensor.name for tensor in model.graph.initializer if not tensor.name.startswith("average_/")]
    assert sorted(kept) == ["m0/gain", "m0/weights", "m0/yes", "m1/yes"], "constants of truth values stay, as masks do"
    np.testing.assert_allclose(fused_members(*models), expected(*models), atol=1e-6)


def test_functions_of_the_same_name_stay_separate() -> None:
    def member(operator: str) -> onnx.ModelProto:
        model = network([FLAT, CLASSIFY, helper.make_node("F", ["product"], ["logits"], domain="mine")])
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
        model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [helper.make_node(operator, ["a"], ["b"])], imports[:1]))
        model.opset_import.append(imports[1])
        return model

    models = [member("Neg"), member("Abs")]
    np.testing.assert_allclose(fused_members(*models), expected(*models), atol=1e-6)


def test_a_sparse_constant_is_renamed() -> None:
    weights = tiny.weights(1)
    model = network([FLAT, helper.make_node("MatMul", ["flat", "weights"], ["logits"])])
    del model.graph.initializer[:]
    values, indices = numpy_helper.from_array(weights[weights > 0], "weights"), numpy_helper.from_array(np.flatnonzero(weights > 0))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, weights.shape))
    right = answer(model, IMAGES)
    rename(model.graph, {"weights": "other"})
    assert names_of(model.graph) == {"images", "flat", "other", "logits"}
    np.testing.assert_array_equal(answer(model, IMAGES), right)


@pytest.mark.parametrize("batch", [-1, None, ""])
def test_a_free_batch_is_accepted_in_every_notation(batch: str | int | None) -> None:
    model = network([FLAT, helper.make_node("Gemm", ["flat", "weights"], ["logits"])], batch)
    model.graph.value_info.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [0, -1]))
    np.testing.assert_allclose(fused_members(model, model), expected(model, model), atol=1e-6)
    for got in int8_answers(int8_from_onnx(model, IMAGES), IMAGES):
        assert np.abs(got - answer(model, IMAGES)).max() < 0.05


def test_graphs_that_onnx_runtime_rejects_are_rejected() -> None:
    good = network([FLAT, helper.make_node("MatMul", ["flat", "weights"], ["logits"])])
    with raises(ExportError, "'m1' | batch of 0"):
        fused_onnx([good, network([FLAT, helper.make_node("MatMul", ["flat", "weights"], ["logits"])], 0)], ensemble_of(2))
    with pytest.raises(ExportError, match="batch of 0"):
        int8_from_onnx(network([FLAT, helper.make_node("Gemm", ["flat", "weights"], ["logits"])], 0), IMAGES)
    for classes in (0, -1, "K"):
        unknown = network([FLAT, helper.make_node("MatMul", ["flat", "weights"], ["logits"])], classes=classes)
        with raises(ExportError, "'m1' | classes"):
            fused_onnx([good, unknown], ensemble_of(2))
    direct = network([FLAT, CLASSIFY, either(branch([], "product"))])
    with raises(ExportError, "'m1' | onnx's checker | product"):
        fused_onnx([good, direct], ensemble_of(2))


def test_a_member_that_onnx_runtime_cannot_run_is_named() -> None:
    good = network([FLAT, helper.make_node("MatMul", ["flat", "weights"], ["logits"])])
    files = [good.SerializeToString()] * 2
    fused = fused_onnx(files, ensemble_of(2))
    bad = network([FLAT, helper.make_node("MatMul", ["flat", "nothing"], ["logits"])]).SerializeToString()
    with raises(ExportError, "'m1' | version 1 | ONNX Runtime"):
        verify_fused(fused, [files[0], bad], ensemble_of(2), None, max_batch_size=1)
    stuck = onnx.load_model_from_string(fused)
    stuck.graph.node[0].op_type = "Unheard"
    with raises(ExportError, "fused graph | ONNX Runtime"):
        verify_fused(stuck.SerializeToString(), files, ensemble_of(2), None, max_batch_size=1)


def convolutions(nodes: Sequence[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """Return a graph of convolutions with the kernel `k` (1x3x3), and a classifier of the output `maps` of `nodes`."""
    kernel = np.random.default_rng(0).normal(size=(1, 1, 3, 3)).astype(np.float32)
    tail = [helper.make_node("Flatten", ["maps"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"])]
    return network([*nodes, *tail], k=kernel, **constants)


def conv(value: str, output: str, *more: str, kernel: str = "k", name: str = "") -> onnx.NodeProto:
    return helper.make_node("Conv", [value, kernel, *more], [output], name=name, pads=[1] * 4)


def near(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    """Return the network in int8, after checking its outputs."""
    quantised = int8_from_onnx(model, IMAGES, **options)
    right = answer(model, IMAGES)
    for got in int8_answers(quantised, IMAGES):
        assert np.abs(got - right).max() < 0.03 * np.abs(right).max()
    return quantised


@pytest.mark.parametrize("moves", ["MaxPool", "Relu", "Reshape", "Identity"])
def test_a_body_may_read_a_moved_convolution_output(moves: str) -> None:
    """ONNX Runtime aborts the process if such a node is between a DequantizeLinear and a body."""
    nodes = [helper.make_node("Identity", ["c"], ["i"])]
    if moves == "MaxPool":
        nodes += [helper.make_node("MaxPool", ["i"], ["p"], kernel_shape=[1, 1]), helper.make_node("Identity", ["p"], ["m"])]
    elif moves == "Reshape":
        nodes += [helper.make_node("Reshape", ["i", "shape"], ["m"])]
    else:
        nodes += [helper.make_node(moves, ["i"], ["m"])]
    body = branch([conv("m", "b", kernel="k"), helper.make_node("Add", ["b", "c"], ["s"])], "s")
    constants = {"shape": np.array([-1, *tiny.SHAPE])} if moves == "Reshape" else {}
    quantised = near(convolutions([conv("images", "c"), *nodes, either(body, output="maps")], **constants))
    assert "k" in {tensor.name for tensor in quantised.graph.initializer}, "the body multiplies by float32 weights"


def test_a_weight_of_two_nodes_is_int8_for_one_and_float32_for_the_other() -> None:
    model = convolutions([conv("images", "a", name="one"), conv("a", "maps", name="two")])
    quantised = near(model, float_nodes=["two"])
    read = {node.name: node.input[1] for node in quantised.graph.node if node.op_type == "Conv"}
    assert read == {"one": "k_DequantizeLinear_Output", "two": "k"}


def test_names_that_the_quantiser_would_create_may_exist() -> None:
    names = [f"k{end}" for end in ("_quantized", "_scale", "_zero_point", "_DequantizeLinear_Output", "1", "_QuantizeLinear_Output")]
    nodes = [
        conv("images", names[0], "b"),
        *(helper.make_node("Neg", [one], [other]) for one, other in pairwise(names)),
    ]
    model = convolutions([*nodes, conv(names[-1], "maps", "b", name="k_DequantizeLinear")], b=np.array([0.25], np.float32))
    quantised = near(model)
    assert set(names) <= names_of(quantised.graph)
    assert [tensor.name for tensor in quantised.graph.initializer if tensor.data_type == TensorProto.FLOAT].count("b") == 1


@pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
def test_the_factor_of_a_bias_is_kept(beta: float) -> None:
    gemm = helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"], beta=beta)
    near(network([FLAT, gemm], bias=np.array([4, -4, 2], np.float32)))


def test_a_graph_that_fails_on_the_images_is_rejected() -> None:
    nodes = [helper.make_node("Reshape", ["images", "shape"], ["r"]), helper.make_node("Gemm", ["r", "weights"], ["logits"])]
    with raises(ExportError, "ONNX Runtime | calibration"):
        int8_from_onnx(network(nodes, shape=np.array([2, 16])), IMAGES)


def test_weights_that_are_not_finite_are_rejected() -> None:
    weights = tiny.weights(1)
    weights[0, 0] = np.inf
    model = network([FLAT, helper.make_node("Gemm", ["flat", "weights"], ["logits"])], weights=weights)
    with raises(ExportError, "'weights' | finite"):
        int8_from_onnx(model, IMAGES)


def test_a_mask_in_a_body_keeps_its_convolution_in_float() -> None:
    mask = numpy_helper.from_array(np.ones((4, 4), bool), "mask")
    body = branch([helper.make_node("Where", ["mask", "a", "zero"], ["masked"])], "masked", zero=0.0)
    body.initializer.append(mask)
    model = convolutions(
        [conv("images", "a", name="first"), either(body, output="b"), conv("b", "c", name="second"), conv("c", "maps", name="third")]
    )
    assert masked_region(model) == ["first", "second"]
    near(model)


def test_a_graph_with_products_only_in_bodies_is_rejected() -> None:
    model = convolutions([either(branch([conv("images", "b")], "b"), output="maps")])
    with raises(ExportError, "quantise | bodies | If, Loop and Scan"):
        int8_from_onnx(model, IMAGES)


def test_rename_makes_all_names_unique() -> None:
    body = branch([helper.make_node("Add", ["product", "weights"], ["y"])], "y", weights=[1.0] * 3)
    model = network([FLAT, CLASSIFY, either(body)])
    right = answer(model, IMAGES)
    rename(model.graph, {"flat": "y", "yes": "flat"})
    defined = [name for node in model.graph.node for name in node.output]
    bodies = [attribute.g for attribute in model.graph.node[-1].attribute]
    defined += [name for inner in bodies for node in inner.node for name in node.output]
    defined += [tensor.name for graph in (model.graph, *bodies) for tensor in graph.initializer]
    assert len(defined) == len(set(defined))
    assert {"y", "flat", "images", "logits", "weights"} <= set(defined) | {"images"}
    np.testing.assert_array_equal(answer(model, IMAGES), right)


def test_a_graph_with_a_normalisation_gets_another_one(tmp_path: Path) -> None:
    model = network([FLAT, CLASSIFY, either(branch([helper.make_node("Neg", ["product"], ["n"])], "n"))])
    once = onnx_from_foreign(write(tmp_path, model), mean=[0.5], std=[0.5])
    twice = onnx_from_foreign(write(tmp_path, once), mean=[0.25], std=[2.0])
    right = answer(model, ((IMAGES - np.float32(0.25)) / 2 - np.float32(0.5)) / np.float32(0.5))
    np.testing.assert_allclose(answer(twice, IMAGES), right, atol=1e-5)


def test_a_reshape_in_a_body_takes_any_batch(tmp_path: Path) -> None:
    body = branch([helper.make_node("Reshape", ["images", "shape"], ["r"]), helper.make_node("MatMul", ["r", "weights"], ["m"])], "m")
    model = network([either(body)], 1, shape=np.array([1, 16]))
    free = onnx_from_foreign(write(tmp_path, model))
    np.testing.assert_allclose(answer(free, IMAGES), tiny.logits(1, IMAGES), atol=1e-5)
