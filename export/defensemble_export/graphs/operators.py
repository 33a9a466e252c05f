"""Sets of ONNX operators that several modules share."""

from __future__ import annotations

import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
# Operators whose equal nodes may return different values for equal inputs.
RANDOM = frozenset(("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"))
QUANTISE_OPERATORS = frozenset(("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"))

MOVES = frozenset(  # operators that only copy numbers
    (
        *("Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth"),
        *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


def is_standard(node: onnx.NodeProto) -> bool:
    """Return whether a node's operator belongs to the ONNX standard. Other domains can have operators of the same name."""
    return node.domain in STANDARD_DOMAINS
