"""Fused graphs: one node and one function for each member, distinguished by the overload."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from defensemble_export import fused_onnx
from defensemble_export.graphs.mask_aware import mask_aware_from_onnx, plain_onnx
from defensemble_ops import DOMAIN, OPERATOR
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.masked_networks import answers, images, masked_network
from tests.support.program_interpreter import run_program

IMAGES = images()
ENSEMBLE = Ensemble("e", (Member("a"), Member("b", weight=2.0), Member("c")))
TARGETS = ("a/logits", "b/logits", "c/logits")


@pytest.mark.parametrize("architecture", ["resnet18", "senet18"])  # the stem of a SENet has no mask, so that members share it
def test_each_member_has_a_node_and_a_function(architecture: str) -> None:
    members = [masked_network(architecture, seed=seed) for seed in range(3)]
    fused = onnx.load_model_from_string(fused_onnx(members, ENSEMBLE))
    compiled = mask_aware_from_onnx(fused, targets=TARGETS)
    onnx.checker.check_model(compiled.model, full_check=True)
    nodes = [node for node in compiled.model.graph.node if node.domain == DOMAIN]
    assert [(node.op_type, node.overload) for node in nodes] == [(OPERATOR, member.model) for member in ENSEMBLE.members]
    assert [(function.name, function.overload) for function in compiled.model.functions] == [(OPERATOR, name) for name in "abc"]
    assert compiled.report["boundary"] == [name for node in nodes for name in node.output]
    for got, again, want in zip(
        answers(compiled.model, IMAGES), answers(plain_onnx(compiled.model), IMAGES), answers(fused, IMAGES), strict=True
    ):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(again, want)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in compiled.model.graph.initializer}
    masks = {tensor.name for tensor in compiled.model.graph.initializer if tensor.data_type == TensorProto.BOOL}
    assert len(masks) == 3 * sum(tensor.data_type == TensorProto.BOOL for tensor in members[0].graph.initializer)
    copy = onnx.ModelProto()
    copy.CopyFrom(fused)
    names = [name for node in nodes for name in node.output]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    expected = dict(zip(names, answers(copy, IMAGES, names), strict=True))
    for node in nodes:
        text = onnx.helper.get_attribute_value(node.attribute[0]).decode()
        outputs = run_program(text, [IMAGES, *(constants[name] for name in node.input[1:])])
        for name, output in zip(node.output, outputs, strict=True):
            np.testing.assert_allclose(output, expected[name], atol=1e-5 * max(1, np.abs(output).max()))


def test_members_without_masks_stay_plain_and_equal_members_are_computed_once() -> None:
    members = [masked_network("resnet18"), masked_network("resnet18", 1.0), masked_network("resnet18")]
    fused = onnx.load_model_from_string(fused_onnx(members, ENSEMBLE))
    compiled = mask_aware_from_onnx(fused, "on", targets=TARGETS)
    overloads = [node.overload for node in compiled.model.graph.node if node.domain == DOMAIN]
    assert overloads[0] == "a"
    assert "b" not in overloads
    for got, want in zip(answers(compiled.model, IMAGES), answers(fused, IMAGES), strict=True):
        np.testing.assert_array_equal(got, want)
