"""Sets of ONNX operators that several converters treat alike."""

from __future__ import annotations

import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
# Equal nodes over equal inputs give equal values, except these.
RANDOM = frozenset(("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"))
QUANTISE_OPERATORS = frozenset(("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"))


def is_standard(node: onnx.NodeProto) -> bool:
    """Return whether a node is of ONNX's own operators; those of other domains can have the same names."""
    return node.domain in STANDARD_DOMAINS
