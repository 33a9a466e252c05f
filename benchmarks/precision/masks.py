"""The size of masks in a file, as they are and with eight neurons per byte."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def mask_bytes(model: onnx.ModelProto) -> int:
    """Return the size in bytes of all BOOL initialisers: one byte for each masked neuron."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.data_type == TensorProto.BOOL)


def with_packed_masks(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with eight neurons per byte in UINT8 initialisers, and nodes that unpack them, which ONNX Runtime folds at load."""
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = packed.graph
    masks = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.BOOL]
    rest = [tensor for tensor in graph.initializer if tensor.data_type != TensorProto.BOOL]
    constants = {
        "unpack.shifts": np.arange(7, -1, -1, dtype=np.uint8),
        "unpack.one": np.uint8(1),
        "unpack.column": np.array([-1, 1], np.int64),
    }
    added = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()] if masks else []
    nodes = []
    for mask in masks:
        name, values = mask.name, numpy_helper.to_array(mask)
        shape = {
            "size": np.array([math.prod(values.shape)], np.int64),
            "shape": np.array(values.shape, np.int64),
            "none": np.zeros(1, np.int64),
        }
        added.append(numpy_helper.from_array(np.packbits(values), f"{name}.packed"))
        added += [numpy_helper.from_array(value, f"{name}.{suffix}") for suffix, value in shape.items()]
        nodes += [
            helper.make_node("Reshape", [f"{name}.packed", "unpack.column"], [f"{name}.column"]),
            helper.make_node("BitShift", [f"{name}.column", "unpack.shifts"], [f"{name}.shifted"], direction="RIGHT"),
            helper.make_node("BitwiseAnd", [f"{name}.shifted", "unpack.one"], [f"{name}.bits"]),
            helper.make_node("Cast", [f"{name}.bits"], [f"{name}.table"], to=TensorProto.BOOL),
            helper.make_node("Flatten", [f"{name}.table"], [f"{name}.row"], axis=0),
            helper.make_node("Slice", [f"{name}.row", f"{name}.none", f"{name}.size", "unpack.axis"], [f"{name}.used"]),
            helper.make_node("Reshape", [f"{name}.used", f"{name}.shape"], [name]),
        ]
    if masks:
        added.append(numpy_helper.from_array(np.array([1], np.int64), "unpack.axis"))
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*rest, *added])
    graph.node.extend(nodes)
    onnx.checker.check_model(packed, full_check=True)
    return packed
