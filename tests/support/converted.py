"""What the tests of the converters share: a tiny real network of the house as a graph, its images, and ONNX Runtime's answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from defensemble_export import ExportOptions, onnx_from_checkpoint
from defensemble_training import load_dataset
from tests.export.members.test_from_checkpoint import digits_spec, untrained

Array = np.ndarray[Any, Any]


def network(**spec: object) -> onnx.ModelProto:
    """An untrained ResNet-18 of width 8 on digits, as it is exported in float32 as a plain file; each is exported once."""
    return onnx.ModelProto.FromString(_exported(**spec))


@cache
def _exported(**spec: object) -> bytes:
    with TemporaryDirectory() as folder:
        checkpoint = untrained(Path(folder) / "net.safetensors", digits_spec(**spec))
        return onnx_from_checkpoint(checkpoint, Path(folder) / "net.onnx", options=ExportOptions(mask_aware="off")).read_bytes()


def digits(part: str, count: int) -> Array:
    """Images of the "train" or "test" part, float32 (count, 1, 16, 16)."""
    images: Array = getattr(load_dataset("digits", 16), part).images(slice(0, count))
    return images


def masks_of(model: onnx.ModelProto) -> dict[str, tuple[list[int], bytes]]:
    """Shape and bytes of each BOOL initialiser."""
    masks = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.BOOL]
    return {mask.name: (list(mask.dims), numpy_helper.to_array(mask).tobytes()) for mask in masks}


def logits(model: onnx.ModelProto, images: Array) -> Array:
    """As the graph stands, without ONNX Runtime's optimisations, which make other products of int8 on some processors."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(["logits"], {"images": images})
    assert isinstance(answer, np.ndarray)
    return answer


def check_contract(converted: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """What each precision keeps: versions, interface, metadata, order, and every mask bit for bit."""
    assert converted.ir_version == 10
    assert [(opset.domain, opset.version) for opset in converted.opset_import] == [("", 20)]
    onnx.checker.check_model(converted, full_check=True)
    assert list(converted.graph.input) == list(model.graph.input)
    assert list(converted.graph.output) == list(model.graph.output)
    assert {one.key: one.value for one in converted.metadata_props} == {one.key: one.value for one in model.metadata_props}
    assert masks_of(converted) == masks_of(model)
    assert masks_of(model)
    constants = {tensor.name for tensor in converted.graph.initializer}
    assert len(constants) == len(converted.graph.initializer)
    conditions = {node.input[0] for node in converted.graph.node if node.op_type == "Where"}
    assert conditions == set(masks_of(model)) <= constants
    known = constants | {tensor.name for tensor in converted.graph.input}
    for node in converted.graph.node:  # every input is there before it is used
        assert set(filter(None, node.input)) <= known, node.name
        known |= set(node.output)
