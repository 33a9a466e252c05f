"""In which numbers an exported graph computes, and how far each form may answer otherwise than the network that it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from defensemble_repository.onnx_metadata import CLASS_NAMES, FUSED_MEMBERS, PRECISION

from ..errors import ExportError
from ..graphs.operators import QUANTISE_OPERATORS
from ..graphs.traversal import metadata_of, nodes_of, tensors_of


@dataclass(frozen=True)
class Tolerance:
    """What every export of a precision must keep, and what it should reach, on real images.

    `logits`: the largest difference of a logit, in units of max(1, largest |logit|). `probabilities`: of a probability.
    `agreement`: the least share of images that get the same class. `goal_agreement` and `goal_accuracy_points` (the largest loss of
    accuracy, in points) are reported where they are missed, and stop nothing. None: not asked for.
    """

    agreement: float
    logits: float | None = None
    probabilities: float | None = None
    goal_agreement: float | None = None
    goal_accuracy_points: float | None = None


# The one table; docs/export.md shows it, and a test compares them. fp32: float32 everywhere, and classes may differ only where the two best
# logits are closer than the tolerance. int8 below 0.9 means that the calibration has failed: trained networks reached 0.947 and more.
TOLERANCES = {
    "fp32": Tolerance(agreement=1.0, logits=1e-5),
    "fp16": Tolerance(agreement=0.999, probabilities=1e-2),
    "int8": Tolerance(agreement=0.9, goal_agreement=0.98, goal_accuracy_points=0.5),
}
# From the most exact to the least.
PRECISIONS = tuple(TOLERANCES)
_QUANTISING = QUANTISE_OPERATORS | {"ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits"}
_QUANTISING_PREFIXES = ("QLinear", "DynamicQuantize")
_SIXTEEN_BITS = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
# Of weights, which packing can make flat; masks are BOOL, axes INT64, and zero points belong to operators that are looked for by name.
_FEW_BITS = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4", "FLOAT8"))
)


def checked_precision(precision: str) -> str:
    """Return `precision`; ExportError where it is none that graphs are exported in."""
    if not isinstance(precision, str) or precision not in TOLERANCES:
        raise ExportError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def lowest_precision(precisions: Iterable[str]) -> str:
    """Return the least exact of `precisions`."""
    return max(precisions, key=PRECISIONS.index)


def computed_precision(model: onnx.ModelProto) -> str:
    """Return the precision that a graph computes in, found from its operators, its casts and its weights; the lowest one counts.

    `int8` stands for every quantised form: Q/DQ pairs, integer operators, and weights of 8 bits and fewer. `fp16` stands for both
    16-bit floats.
    """
    nodes = list(nodes_of(model.graph))
    if any(node.op_type in _QUANTISING or node.op_type.startswith(_QUANTISING_PREFIXES) for node in nodes):
        return "int8"
    tensors = list(tensors_of(model))
    if any(math.prod(one.dims) > 1 and one.data_type in _FEW_BITS for one in tensors):
        return "int8"
    casts = {attribute.i for node in nodes if node.op_type == "Cast" for attribute in node.attribute if attribute.name == "to"}
    return "fp16" if _SIXTEEN_BITS & (casts | {one.data_type for one in tensors}) else "fp32"


def precision_of(model: onnx.ModelProto, stated: str | None) -> str | None:
    """Return the precision of an exported graph: what it computes in, or the lower one that its metadata name.

    A graph that no export of ours has marked, and that computes in float32 as far as can be seen, has the precision `stated` by its
    configuration.
    """
    notes = metadata_of(model)
    noted = notes.get(PRECISION, "fp32")
    if noted not in TOLERANCES:
        return noted
    own = lowest_precision((noted, computed_precision(model)))
    return own if own != "fp32" or (CLASS_NAMES in notes and FUSED_MEMBERS not in notes) else stated
