"""A mask-aware file is read as its plain graph: names, masks, digests, conversions and engines are those of the plain file."""

from __future__ import annotations

from dataclasses import asdict

import onnx
from onnx import numpy_helper

from defensemble_export import EngineOptions, ExportError, fp16_from_onnx, fused_onnx, int8_from_onnx
from defensemble_export.engines.builder import plain_content, request_from_onnx
from defensemble_export.engines.parser_support import problems_of_graph
from defensemble_export.graphs.stored import file_from_bytes, model_from_bytes
from defensemble_export.verification.tolerances import precision_of
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_training import mask_digest
from tests.support import masked
from tests.support.facts import assert_facts, raises

PLAIN = masked.masked_onnx()
AWARE = masked.mask_aware(PLAIN)
CONTENT = masked.serialised(AWARE)


def masks(model: onnx.ModelProto) -> dict[str, masked.Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL}


def test_the_plain_graph_is_that_of_the_export() -> None:
    assert masked.serialised(model_from_bytes(CONTENT, "net")) == masked.serialised(PLAIN)
    assert file_from_bytes(CONTENT, "net").functions
    assert precision_of(model_from_bytes(CONTENT, "net"), None) == "fp32"
    assert len(CONTENT) < 1.01 * len(masked.serialised(PLAIN)) + 4000, "the weights are stored once"


def test_weights_and_masks_have_their_names_and_digests_in_the_stored_file() -> None:
    assert [tensor.name for tensor in AWARE.graph.initializer] == [tensor.name for tensor in PLAIN.graph.initializer]
    assert set(masks(AWARE)) == set(masked.MASKS)
    assert mask_digest(masks(AWARE)) == mask_digest(masks(PLAIN))


def test_what_is_converted_equals_what_is_converted_from_the_plain_file() -> None:
    images = masked.images(32)
    assert masked.serialised(fp16_from_onnx(AWARE)) == masked.serialised(fp16_from_onnx(PLAIN))
    assert masked.serialised(int8_from_onnx(AWARE, images)) == masked.serialised(int8_from_onnx(PLAIN, images))


def test_an_engine_is_built_from_the_plain_graph() -> None:
    plain = masked.serialised(PLAIN)
    options = {**asdict(EngineOptions()), "max_batch_size": 8, "precision": "fp32"}
    assert request_from_onnx(CONTENT, "net", **options) == request_from_onnx(plain, "net", **options)
    assert plain_content(CONTENT, "net") == plain_content(plain, "net") == plain
    assert problems_of_graph(PLAIN) == []
    assert_facts("".join(problems_of_graph(AWARE)), "MaskedNetwork_v1")


def test_members_are_fused_from_their_plain_graphs() -> None:
    ensemble = Ensemble("ensemble", (Member("a"), Member("b")))
    other = masked.masked_onnx(2)
    assert fused_onnx([AWARE, masked.mask_aware(other)], ensemble) == fused_onnx([PLAIN, other], ensemble)


def test_a_function_that_another_tool_changed_is_refused() -> None:
    changed = onnx.ModelProto.FromString(CONTENT)
    del changed.functions[:]
    with raises(ExportError, "MaskedNetwork_v1 | missing | export the network again"):
        model_from_bytes(masked.serialised(changed), "net")
    changed = onnx.ModelProto.FromString(CONTENT)
    changed.functions[0].input[1] = "other"
    with raises(ExportError, "other inputs") as caught:
        model_from_bytes(masked.serialised(changed), "net")
    assert_facts(str(caught.value), "another tool")
