"""Masks of whole channels: the graph with smaller convolutions computes the same, and keeps its masks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, numpy_helper

from defensemble_export import fused_onnx
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.mask_aware import is_mask_aware, mask_aware_from_onnx, plain_onnx
from defensemble_export.graphs.mask_aware.channels import channel_form, has_channel_masks
from defensemble_export.graphs.mask_aware.operations import read_network
from defensemble_ops import OPERATOR
from defensemble_repository.ensemble import Ensemble, Member
from tests.conftest import UNTIMED
from tests.support.generated_masked_graphs import SHAPE, masked_graphs
from tests.support.masked_networks import ARCHITECTURES, answers, images, masked_network

IMAGES = images()
CASES = [
    pytest.param(architecture, keep, marks=() if (architecture, keep) == ("resnet18", 0.1) else pytest.mark.slow)
    for architecture in ARCHITECTURES
    for keep in (0.0, 0.1, 0.5)
]


def initializers(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}


@pytest.mark.parametrize(("architecture", "keep"), CASES)
def test_smaller_convolutions_compute_the_same(architecture: str, keep: float) -> None:
    model = masked_network(architecture, keep, "channel")
    network = read_network(model)
    assert has_channel_masks(network)
    form = channel_form(model, network, "images", block=1)
    assert form is not None
    onnx.checker.check_model(form.model, full_check=True)
    assert initializers(model).items() <= initializers(form.model).items()
    assert all(form.time(batch) < form.dense[batch] for batch in (1, 16))
    convolutions = sum(layer_is_smaller for layer_is_smaller in (not (i.all() and o.all()) for _, i, o in form.layers))
    assert convolutions == len(form.layers) > 3
    (want,) = answers(model, IMAGES)
    for optimised in (True, False):
        (got,) = answers(form.model, IMAGES, optimised=optimised)
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@settings(UNTIMED)
@given(masked_graphs(masks="channel"))
def test_random_networks_compute_the_same(model: onnx.ModelProto) -> None:
    batch = np.random.default_rng(0).normal(0, 1, (2, *SHAPE)).astype(np.float32)
    form = channel_form(model, read_network(model), "images", block=1)
    if form is None:
        return
    onnx.checker.check_model(form.model, full_check=True)
    (want,) = answers(model, batch, optimised=False)
    (got,) = answers(form.model, batch, optimised=False)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(want).max())))


def test_export_of_channel_masks_needs_no_operator() -> None:
    model = masked_network("resnet18", 0.1, "channel", width=32)
    compiled = mask_aware_from_onnx(model)
    assert not is_mask_aware(compiled.model)
    assert compiled.report["operator"] is None
    assert "channels" in compiled.report["reason"]
    assert compiled.report["boundary"] == []
    assert {layer["form"]["1"] for layer in compiled.report["layers"]} == {"channels"}
    assert compiled.report["multiplications"]["kept"] < 0.7 * compiled.report["multiplications"]["dense"]
    assert compiled.report["expected_gain"]["1"] > 1.1
    masks = [
        [each.SerializeToString() for each in graph.initializer if each.data_type == TensorProto.BOOL]
        for graph in (model.graph, compiled.model.graph)
    ]
    assert masks[0] == masks[1]
    assert plain_onnx(compiled.model) is compiled.model
    (want,) = answers(model, IMAGES)
    np.testing.assert_allclose(answers(compiled.model, IMAGES)[0], want, atol=1e-5)
    np.testing.assert_allclose(answers(fp16_from_onnx(compiled.model), IMAGES)[0], want, atol=0.02)
    weights = {name for name, each in ((each.name, numpy_helper.to_array(each)) for each in model.graph.initializer) if each.ndim == 4}
    assert weights <= set(initializers(compiled.model))


def test_fused_graph_of_members_with_different_patterns() -> None:
    members = [
        masked_network("resnet18", 0.1, pattern, width=32, seed=seed) for seed, pattern in enumerate(("channel", "neuron", "channel"))
    ]
    fused = onnx.load_model_from_string(fused_onnx(members, Ensemble("e", (Member("a"), Member("b"), Member("c")))))
    compiled = mask_aware_from_onnx(fused, targets=("a/logits", "b/logits", "c/logits"))
    onnx.checker.check_model(compiled.model, full_check=True)
    assert [node.overload for node in compiled.model.graph.node if node.op_type == OPERATOR] == ["b"]
    for got, want in zip(answers(compiled.model, IMAGES), answers(fused, IMAGES), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
