"""The operator library: masked networks on ONNX Runtime at the cost of their live neurons.

The operator `defensemble::MaskedNetwork_v1` computes the masked bottom of a network. It is written in C++ (`native/`), and built once into
the user's cache. A graph that contains it also defines it as a function of ordinary nodes, which ONNX Runtime runs, densely, where the
library is not registered.

Example:
    >>> options = onnxruntime.SessionOptions()
    >>> register(options)
    >>> is_active(onnxruntime.InferenceSession("model.onnx", options))
    True
"""

from __future__ import annotations

from .errors import BuildError as BuildError
from .sessions import (
    instruction_set as instruction_set,
    is_active as is_active,
    library_path as library_path,
    register as register,
)

DOMAIN = "defensemble"
OPERATOR = "MaskedNetwork_v1"

__all__ = ["DOMAIN", "OPERATOR", "BuildError", "instruction_set", "is_active", "library_path", "register"]
