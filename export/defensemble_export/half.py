"""An exported graph in float16, with float32 inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ._errors import ExportError
from .averaging import IR_VERSION
from .graph import checked, named_copy

LARGEST = float(np.finfo(np.float16).max)
# A product is what makes images into features, or features into logits.
_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# Sums over many values, and what is steep: float16 would lose what they are for, and they take next to no time.
_STAY = frozenset(
    (
        *("AveragePool", "GlobalAveragePool", "LpNormalization", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum"),
        *("Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "Softmax", "Sqrt"),
    )
)


def fp16_from_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a float32 graph to float16: weights, and everything between the first convolution and the logits.

    Inputs and outputs stay float32 under their names, masks stay BOOL initialisers under theirs, and the metadata are kept; ``model`` is
    not changed. In float32 stay the operators before the first convolution, which normalise images (so the zoo's networks agree with
    float32 on 99.99 % of the images, otherwise on 99.93 %), sums over many values, such as the mean before the classifier, and softmax.

    Raises:
        ExportError: the graph is in float16 already, holds functions, or a weight that float16 does not (above 65504, or NaN); names it.
    """
    from onnxconverter_common import float16

    if TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}:
        raise ExportError("the graph holds float16 weights already: convert the float32 graph that it was made from")
    _check_weights(model.graph.initializer)
    copy = named_copy(model)
    kept = _before_products(copy) | {node.name for node in copy.graph.node if node.op_type in _STAY}
    _keep_constants_apart(copy, kept)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    converted: onnx.ModelProto = float16.convert_float_to_float16(
        copy,
        min_positive_val=0,  # its default makes 1e-7 of what is smaller: here that becomes 0, as rounding has it
        max_finite_val=float("inf"),  # none is larger than float16 holds
        keep_io_types=True,
        op_block_list=float16.DEFAULT_OP_BLOCK_LIST,
        node_block_list=sorted(kept),
        check_fp16_ready=False,
    )
    converted.ir_version = IR_VERSION
    del converted.graph.value_info[:]
    onnx.helper.set_model_props(converted, metadata)
    return checked(converted, "fp16")


def _check_weights(tensors: Iterable[onnx.TensorProto]) -> None:
    for tensor in tensors:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0.0))
        if not largest <= LARGEST:  # also where it is NaN
            what = "holds NaN" if np.isnan(largest) else f"holds {largest:g}"
            raise ExportError(f"'{tensor.name}' {what}, and float16 holds finite numbers up to {LARGEST:g} alone: export it as fp32")


def _before_products(model: onnx.ModelProto) -> set[str]:
    """Nodes on which no convolution or matrix product bears: they compute on images."""
    after: set[str] = set()
    names = set()
    for node in model.graph.node:
        if node.op_type in _PRODUCTS or after.intersection(node.input):
            after.update(node.output)
        else:
            names.add(node.name)
    return names


def _keep_constants_apart(model: onnx.ModelProto, kept: Collection[str]) -> None:
    """Give the operators that stay in float32 constants of their own where others use them too.

    The converter leaves a constant in float32 where any operator keeps it, and the graph is then invalid for the others.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    shared = {name for node in model.graph.node if node.name not in kept for name in node.input if name in constants}
    added = set()
    for node in model.graph.node:
        if node.name not in kept:
            continue
        for position, name in enumerate(node.input):
            if name in shared:
                node.input[position] = own = f"{name}_float32"
                if own not in added:
                    added.add(own)
                    tensor = model.graph.initializer.add()
                    tensor.CopyFrom(constants[name])
                    tensor.name = own
