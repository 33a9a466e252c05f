"""Masks have the smallest size of BOOL initialisers: one byte per value, the smallest shape that broadcasts, each stored once."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from benchmarks.precision.masks import mask_bytes, with_packed_masks
from defensemble_export.graphs.fp16 import fp16_from_onnx
from defensemble_export.graphs.int8 import int8_from_onnx
from tests.support.converted import digits, logits, masks_of, network

# The axes of a mask (channels, height, width) that each pattern shares.
SHARED_AXES = {"neuron": (), "channel": (1, 2), "shared": (0,)}
OVERHEAD = 50  # bytes per mask: its name, dims and type


@pytest.mark.parametrize("pattern", list(SHARED_AXES))
def test_a_mask_is_stored_once_in_its_smallest_shape_with_one_byte_per_value(pattern: str) -> None:
    model = network() if pattern == "neuron" else network(pattern=pattern, width=4)
    for form in (model, fp16_from_onnx(model), int8_from_onnx(model, digits("train", 16))):
        masks = [tensor for tensor in form.graph.initializer if tensor.data_type == TensorProto.BOOL]
        assert len(masks) == len({mask.name for mask in masks}) == 10
        for mask in masks:
            values = numpy_helper.to_array(mask)
            assert len(mask.raw_data) == math.prod(mask.dims) == values.size
            assert not mask.int32_data, "which would take a byte or two for each value, and a length"
            assert values.ndim == 3
            assert [axis for axis, extent in enumerate(values.shape) if extent == 1] == list(SHARED_AXES[pattern])
        bare = onnx.ModelProto()
        bare.CopyFrom(form)
        del bare.graph.initializer[:]
        bare.graph.initializer.extend(one for one in form.graph.initializer if one.data_type != TensorProto.BOOL)
        room = len(form.SerializeToString()) - len(bare.SerializeToString())
        assert mask_bytes(form) <= room <= mask_bytes(form) + OVERHEAD * len(masks)


def test_the_packed_masks_benchmark_compares_the_same_network() -> None:
    model = network(width=3)  # some numbers of neurons are not multiples of eight
    packed = with_packed_masks(model)
    assert masks_of(packed) == {}
    assert mask_bytes(packed) == 0 < mask_bytes(model)
    images = digits("test", 20)
    assert np.array_equal(logits(packed, images), logits(model, images))
