"""What the compiler accepts and refuses, with reasons that name the node, and what it reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_export import ExportError
from defensemble_export.foreign.convert import onnx_from_foreign
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.mask_aware import MaskAware, mask_aware_from_onnx, operations
from defensemble_ops import OPERATOR
from tests.support.masked_networks import masked_network
from tests.support.program_interpreter import Array, run_program

SHAPE = (3, 16, 16)
CHANNELS = 8
Nodes = Sequence[onnx.NodeProto]
node = helper.make_node


def constants(keep: float = 0.1) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    values: dict[str, Array] = {
        "w0": generator.normal(0, 0.3, (CHANNELS, 3, 3, 3)),
        "w1": generator.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)),
        "b": generator.normal(0, 0.3, CHANNELS),
        "scale": generator.normal(1, 0.1, CHANNELS),
        "mean": generator.normal(0, 0.1, CHANNELS),
        "var": generator.uniform(0.5, 1.5, CHANNELS),
        "zero": np.zeros(()),
    }
    masks = {name: generator.random((CHANNELS, 16, 16)) < keep for name in ("m0", "m1")}
    return {name: value.astype(np.float32) for name, value in values.items()} | masks


def conv(source: str, weight: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return node("Conv", [source, weight, "b"], [output], pads=[1] * 4, name=f"conv {output}", **attributes)


def masked(middle: Nodes, last: str, more: dict[str, Array] | None = None, *, shape: Sequence[Any] = ("N", *SHAPE)) -> onnx.ModelProto:
    """A masked convolution (`x`), `middle`, and the mean of `last` as logits."""
    nodes = [
        conv("images", "w0", "c0"),
        node("Where", ["m0", "c0", "zero"], ["x"], name="where x"),
        *middle,
        node("GlobalAveragePool", [last], ["pooled"]),
        node("Flatten", ["pooled"], ["logits"]),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "masked",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", "K"])],
            [numpy_helper.from_array(value, name) for name, value in (constants() | (more or {})).items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


TWO = [conv("x", "w1", "c1"), node("Where", ["m1", "c1", "zero"], ["y"], name="where y"), node("Relu", ["y"], ["z"])]


def compiled_and_checked(model: onnx.ModelProto) -> tuple[MaskAware, list[str]]:
    """Compile a graph, compare the program with ONNX Runtime, and return its lines."""
    compiled = mask_aware_from_onnx(model, "on")
    onnx.checker.check_model(compiled.model, full_check=True)
    (mask_aware,) = (each for each in compiled.model.graph.node if each.op_type == OPERATOR)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in compiled.model.graph.initializer}
    values |= {
        each.output[0]: numpy_helper.to_array(each.attribute[0].t) for each in compiled.model.graph.node if each.op_type == "Constant"
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = list(mask_aware.output)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    images = np.random.default_rng(1).random((2, *SHAPE), np.float32)
    sessions = [
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]) for each in (copy, compiled.model)
    ]
    want = sessions[0].run([*names, "logits"], {"images": images})
    (logits,) = sessions[1].run(["logits"], {"images": images})
    np.testing.assert_array_equal(logits, want[-1])
    text = helper.get_attribute_value(mask_aware.attribute[0]).decode()
    for got, expected in zip(run_program(text, [images, *(values[name] for name in mask_aware.input[1:])]), want, strict=False):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    return compiled, text.splitlines()


def test_masks_sums_and_activations_are_fused_into_convolutions() -> None:
    _, lines = compiled_and_checked(masked([*TWO, node("Add", ["z", "x"], ["s"]), node("Relu", ["s"], ["r"])], "r"))
    assert [line.split()[0] for line in lines[1:]] == ["images", "conv", "conv", "add", "mean", "output"]
    assert "act=relu" in lines[3]
    assert "act=relu" in lines[4]


def test_batch_norm_behind_a_convolution_computes_kept_neurons_only() -> None:
    norm = node("BatchNormalization", ["c1", "scale", "b", "mean", "var"], ["n1"], epsilon=1e-3)
    _, lines = compiled_and_checked(masked([TWO[0], norm, node("Where", ["m1", "n1", "zero"], ["y"]), TWO[2]], "z"))
    mask = lines[3].partition("support=")[2].split()[0]
    assert mask != "full"
    assert lines[4].startswith("map in=2 steps=bn:")
    assert lines[4].endswith(f"act=relu support={mask}")


def test_constants_may_be_nodes() -> None:
    model = masked(TWO, "z")
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in ("m1", "w1", "zero")]:
        model.graph.node.insert(0, node("Constant", [], [tensor.name], value=tensor))
        model.graph.initializer.remove(tensor)
    compiled, _ = compiled_and_checked(model)
    assert [each.output[0] for each in compiled.model.graph.node if each.op_type == "Constant"] == ["m1", "zero", "w1"]


def test_a_tensor_with_other_readers_keeps_its_neurons() -> None:
    pool = node("GlobalMaxPool", ["c1"], ["all"])
    third = [conv("z", "w1", "c2"), node("Where", ["m0", "c2", "zero"], ["u"]), node("Add", ["u", "all"], ["r"])]
    model = masked([*TWO, pool, *third], "r")
    _, lines = compiled_and_checked(model)
    assert sum("support=full" in line for line in lines) == 1  # c1: the maximum reads all of it


def test_mask_in_front_of_a_convolution_limits_what_its_input_computes() -> None:
    norm = node("BatchNormalization", ["r1", "scale", "b", "mean", "var"], ["n1"])
    middle = [conv("x", "w1", "c1"), node("Relu", ["c1"], ["r1"]), norm, node("Where", ["m1", "n1", "zero"], ["y"]), conv("y", "w1", "c2")]
    compiled, _ = compiled_and_checked(masked(middle, "c2"))
    first, second, third = compiled.report["layers"]
    assert [layer["output_support"] < 0.2 for layer in (first, second, third)] == [True, True, False]


REFUSED: dict[str, tuple[Nodes, str, dict[str, Array], str, tuple[str, ...]]] = {
    "swapped mask": ([node("Where", ["m1", "zero", "x"], ["y"], name="odd")], "y", {}, "odd", ("m1", "True")),
    "other value": ([node("Where", ["m1", "x", "one"], ["y"], name="odd")], "y", {"one": np.ones(1, np.float32)}, "odd", ("m1",)),
    "computed mask": (
        [node("Greater", ["x", "zero"], ["g"], name="g"), node("Where", ["g", "x", "zero"], ["y"], name="odd")],
        "y",
        {},
        "odd",
        ("'g'", "BOOL"),
    ),
    "float mask": (
        [node("Mul", ["x", "f"], ["y"], name="odd")],
        "y",
        {"f": np.ones((8, 16, 16), np.float32)},
        "odd",
        ("'f'", "(8, 16, 16)"),
    ),
    "operator": ([node("Elu", ["x"], ["y"], name="odd")], "y", {}, "odd", ("Elu",)),
    "domain": ([node("LeakyRelu", ["x"], ["y"], name="odd")], "y", {}, "odd", ("LeakyRelu",)),
    "groups": ([node("Conv", ["x", "g"], ["y"], name="odd", group=8)], "y", {"g": np.ones((8, 1, 1, 1), np.float32)}, "odd", ("8 groups",)),
    "infinity": ([conv("x", "w", "y")], "y", {"w": np.full((8, 8, 3, 3), np.inf, np.float32)}, "conv y", ("'w'", "infinity")),
    "division by 0": (
        [node("Div", ["x", "d"], ["y"], name="odd")],
        "y",
        {"d": np.array([0, *[2] * 7], np.float32).reshape(8, 1, 1)},
        "odd",
        ("'d'",),
    ),
    "infinite constant": (
        [node("Add", ["x", "d"], ["y"], name="odd")],
        "y",
        {"d": np.full(1, np.inf, np.float32)},
        "odd",
        ("'d'", "infinity"),
    ),
    "rows": (
        [node("Conv", ["x", "w"], ["y"], name="odd", pads=[45] * 4)],
        "y",
        {"w": np.full((1, 8, 91, 91), 0.01, np.float32)},
        "odd",
        ("66248", "65535"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_program_cannot_express_is_left_to_the_runtime(case: str) -> None:
    middle, last, more, name, facts = REFUSED[case]
    compiled, _ = compiled_and_checked(masked(middle, last, more))
    *_, stop = compiled.report["stopped_at"]
    assert stop["node"] == name
    for fact in facts:
        assert fact in stop["reason"]
    assert [layer["kept"] < layer["unpadded"] for layer in compiled.report["layers"]] == [True]


LIMITED: dict[str, tuple[onnx.NodeProto, Array, int]] = {
    "MAX_EXTENT": (node("Conv", ["x", "w"], ["y"], name="odd", pads=[1] * 4), np.ones((8, 8, 1, 1)), 18),
    "MAX_NEURONS": (node("Conv", ["x", "w"], ["y"], name="odd"), np.ones((16, 8, 1, 1)), 16 * 16 * 16),
    "MAX_CONV_CELLS": (node("Conv", ["x", "w"], ["y"], name="odd", pads=[2] * 4), np.ones((8, 8, 5, 5)), 16 * 16 * 25),
    "MAX_CONV_INPUTS": (node("Conv", ["x", "w"], ["y"], name="odd", pads=[1] * 4), np.ones((8, 8, 3, 3)), 16 * 16 * 9 * 8),
    "MAX_WINDOW_CELLS": (
        node("MaxPool", ["x"], ["y"], name="odd", kernel_shape=[3, 20], pads=[1, 19, 1, 0]),
        np.ones(()),
        8 * 16 * 16 * 3 * 16,
    ),
}


@pytest.mark.parametrize("limit", LIMITED)
def test_what_is_too_large_for_the_operator_is_left_to_the_runtime(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    odd, weight, size = LIMITED[limit]
    model = masked([odd], "y", {"w": weight.astype(np.float32)})
    monkeypatch.setattr(operations, limit, size)
    assert compiled_and_checked(model)[0].report["stopped_at"] == []
    monkeypatch.setattr(operations, limit, size - 1)
    (stop,) = compiled_and_checked(model)[0].report["stopped_at"]
    assert stop["node"] == "odd"
    assert str(size - 1) in stop["reason"]


def test_mask_that_cannot_be_followed_is_an_error_on_request() -> None:
    model = masked(TWO, "z")
    model.graph.node.insert(0, node("Elu", ["images"], ["elu"], name="first"))
    model.graph.node[1].input[0] = "elu"
    unchanged = mask_aware_from_onnx(model)
    assert unchanged.model is model
    assert unchanged.report["operator"] is None
    assert unchanged.report["stopped_at"] == [{"node": "first", "reason": "the operator Elu is not supported"}]
    with pytest.raises(ExportError, match=r"'first'.*Elu"):
        mask_aware_from_onnx(model, "on")


def _quantised() -> onnx.ModelProto:
    scale: dict[str, Array] = {"s": np.ones((), np.float32), "p": np.zeros((), np.uint8)}
    return masked([node("QuantizeLinear", ["x", "s", "p"], ["q"], name="q"), node("DequantizeLinear", ["q", "s", "p"], ["y"])], "y", scale)


def _all_ones() -> onnx.ModelProto:
    model = masked(TWO, "z")
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BOOL:
            tensor.CopyFrom(numpy_helper.from_array(np.ones(tensor.dims, bool), tensor.name))
    return model


UNSUITABLE: dict[str, tuple[onnx.ModelProto, str]] = {
    "no masks": (masked([], "c0"), "no masks"),
    "masks of ones": (_all_ones(), "all neurons"),
    "float16": (fp16_from_onnx(masked([], "x")), "FLOAT"),
    "quantised": (_quantised(), "'q' quantises"),
    "sizes": (masked([], "x", shape=("N", 3, "H", "W")), "fixed C, H and W"),
    "batch": (masked([], "x", shape=(4, *SHAPE)), "batch of 4"),
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_unsuitable_graphs_stay_as_they_are(case: str) -> None:
    model, fact = UNSUITABLE[case]
    unchanged = mask_aware_from_onnx(model)
    assert unchanged.model is model
    assert not unchanged.is_active
    assert fact in unchanged.report["reason"]
    with pytest.raises(ExportError, match=fact):
        mask_aware_from_onnx(model, "on")


def test_mode_must_be_known() -> None:
    with pytest.raises(ExportError, match=r"auto, on.*'off'"):
        mask_aware_from_onnx(masked([], "x"), "off")


def test_report_is_json_and_counts_multiplications() -> None:
    report = mask_aware_from_onnx(masked(TWO, "z"), "on").report
    assert json.loads(json.dumps(report)) == report
    first, second = report["layers"]
    values = constants()
    padded = np.pad(values["m0"], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).sum((0, 3, 4))
    assert second["kept"] == (windows * values["m1"].sum(0)).sum()
    assert second["dense"] == 8 * 8 * 9 * 256
    assert second["unpadded"] == 8 * 8 * 46 * 46
    assert report["multiplications"] == {key: first[key] + second[key] for key in ("dense", "unpadded", "kept")}
    assert set(report["expected_gain"]) == {"1", "4", "16", "64"}
    assert set(second["form"]) == {"1", "2-4", "5-8", "9+"}


@pytest.mark.parametrize(("keep", "is_active"), [(0.1, True), (0.3, True), (0.99, False)])
def test_auto_follows_the_expected_gain(keep: float, is_active: bool) -> None:
    compiled = mask_aware_from_onnx(masked_network("resnet18", keep))
    assert compiled.is_active == is_active
    gains = compiled.report["expected_gain"]
    assert (gains["16"] > 1.1 and gains["1"] >= 0.97) == is_active
    assert (compiled.report["operator"] == OPERATOR) == is_active


def test_same_graph_gives_the_same_bytes_and_compiling_again_changes_nothing() -> None:
    model = masked_network("senet18")
    first, second = (mask_aware_from_onnx(model, "on") for _ in range(2))
    content = first.model.SerializeToString(deterministic=True)
    assert second.model.SerializeToString(deterministic=True) == content
    (program,) = (helper.get_attribute_value(each.attribute[0]) for each in first.model.graph.node if each.op_type == OPERATOR)
    (again,) = (
        helper.get_attribute_value(each.attribute[0])
        for each in mask_aware_from_onnx(first.model, "on").model.graph.node
        if each.op_type == OPERATOR
    )
    assert again == program


def test_network_that_was_converted_is_followed(tmp_path: Path) -> None:
    norm = node("BatchNormalization", ["c1", "scale", "b", "mean", "var"], ["n1"], epsilon=1e-3)
    middle = [TWO[0], norm, node("Where", ["m1", "n1", "zero"], ["y"]), TWO[2], conv("z", "w1", "c2")]
    path = tmp_path / "theirs.onnx"
    onnx.save(masked(middle, "c2"), path)
    converted = onnx_from_foreign(path)
    compiled, _ = compiled_and_checked(converted)
    assert len(compiled.report["layers"]) == 3
