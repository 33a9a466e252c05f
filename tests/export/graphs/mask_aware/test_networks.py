"""Whole networks of every architecture and pattern: the program, the function and the plain graph compute the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.mask_aware import is_mask_aware, mask_aware_from_onnx, plain_onnx
from defensemble_ops import DOMAIN, OPERATOR
from defensemble_repository.onnx_metadata import MASK_DIGEST
from tests.support.masked_networks import ARCHITECTURES, answers, images, masked_network
from tests.support.program_interpreter import run_program

Array = np.ndarray[Any, Any]
PATTERNS = ("neuron", "shared")  # test_channels.py tests masks of whole channels
FAST = ("resnet18", "senet18")  # tracing takes 10 to 40 s for each of the others
EVERY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ARCHITECTURES]
IMAGES = images()


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def program_of(model: onnx.ModelProto) -> tuple[onnx.NodeProto, str]:
    (node,) = (node for node in model.graph.node if node.op_type == OPERATOR)
    return node, onnx.helper.get_attribute_value(node.attribute[0]).decode()


def interpreted(model: onnx.ModelProto) -> list[Array]:
    """What the program of a mask-aware graph computes."""
    node, text = program_of(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    constants |= {each.output[0]: numpy_helper.to_array(each.attribute[0].t) for each in model.graph.node if each.op_type == "Constant"}
    return run_program(text, [IMAGES, *(constants[name] for name in node.input[1:])])


def initializers(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    return sorted((tensor.name, tensor.SerializeToString()) for tensor in model.graph.initializer)


@pytest.mark.parametrize("keep", [0.1, 0.5])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", EVERY)
def test_program_computes_what_the_plain_graph_computes(architecture: str, pattern: str, keep: float) -> None:
    plain = masked_network(architecture, keep, pattern)
    compiled = mask_aware_from_onnx(plain, "on")
    node, _ = program_of(compiled.model)
    expected = answers(with_outputs(plain, list(node.output)), IMAGES, list(node.output))
    for name, got, want in zip(node.output, interpreted(compiled.model), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()), err_msg=name)
        assert np.abs(want).max() > 0.01


@pytest.mark.parametrize("optimised", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("architecture", EVERY)
def test_runtime_without_the_operator_computes_the_same_bits(architecture: str, pattern: str, optimised: bool) -> None:
    plain = masked_network(architecture, 0.1, pattern)
    compiled = mask_aware_from_onnx(plain, "on").model
    onnx.checker.check_model(compiled, full_check=True)
    (want,) = answers(plain, IMAGES, ["logits"], optimised=optimised)
    for model in (compiled, plain_onnx(compiled)):
        (got,) = answers(model, IMAGES, ["logits"], optimised=optimised)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("architecture", EVERY)
def test_plain_graph_is_in_the_file(architecture: str) -> None:
    plain = masked_network(architecture)
    onnx.helper.set_model_props(plain, {MASK_DIGEST: "12ab"})
    before = plain.SerializeToString()
    compiled = mask_aware_from_onnx(plain, "on").model
    assert plain.SerializeToString() == before, "the graph that was passed is unchanged"
    assert is_mask_aware(compiled)
    assert not is_mask_aware(plain)
    again = plain_onnx(compiled)
    assert not is_mask_aware(again)
    assert initializers(again) == initializers(compiled) == initializers(plain)
    assert {entry.key: entry.value for entry in again.metadata_props} == {MASK_DIGEST: "12ab"}
    assert [entry.domain for entry in again.opset_import] == [""]
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in plain.graph.node]
    assert [value.SerializeToString() for value in again.graph.input] == [value.SerializeToString() for value in plain.graph.input]
    assert not again.functions
    assert compiled.ByteSize() < 1.01 * plain.ByteSize() + 50_000
    onnx.checker.check_model(again, full_check=True)


def test_masks_survive_the_conversion_of_the_plain_graph_to_fp16() -> None:
    compiled = mask_aware_from_onnx(masked_network("resnet18"), "on").model
    half = fp16_from_onnx(plain_onnx(compiled))
    (got,), (want,) = answers(half, IMAGES, ["logits"]), answers(compiled, IMAGES, ["logits"])
    np.testing.assert_allclose(got, want, atol=0.02)
    masks = [[each for each in model.graph.initializer if each.data_type == TensorProto.BOOL] for model in (half, compiled)]
    assert [each.SerializeToString() for each in masks[0]] == [each.SerializeToString() for each in masks[1]]


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_masks_of_all_zeros_and_all_ones(keep: float) -> None:
    plain = masked_network("resnet18", keep)
    compiled = mask_aware_from_onnx(plain)
    if keep == 1:
        assert compiled.model is plain
        assert compiled.report["operator"] is None
        return
    node, _ = program_of(compiled.model)
    expected = answers(with_outputs(plain, list(node.output)), IMAGES, list(node.output))
    for got, want in zip(interpreted(compiled.model), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_region_of_resnet18_has_the_masked_blocks_and_ends_at_block_3() -> None:
    compiled = mask_aware_from_onnx(masked_network("resnet18"))
    layers = [layer["name"] for layer in compiled.report["layers"]]
    assert layers[0] == "stem.conv"
    assert {"block1.0.conv1", "block2.1.conv2"} <= set(layers)
    assert not any(name.startswith(("block3.0.conv2", "block3.1", "block4")) for name in layers)
    assert [entry.version for entry in compiled.model.opset_import if entry.domain == DOMAIN] == [1]
