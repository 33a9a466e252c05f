"""Tensors as bytes, the same in the KServe v2 protocol over gRPC and in its binary extension over HTTP."""

from __future__ import annotations

import contextlib
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import ServerFailedError
from .error_mapping import service_error

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


def array_from_wire(datatype: str, shape: tuple[int, ...], content: bytes | memoryview, what: str) -> NDArray[Any]:
    """A read-only array over the content, which is not copied; BYTES become an object array of bytes.

    A `ServerFailedError` is raised where content and shape do not fit, or the datatype is unknown; `what` is what was asked of whom.
    """
    if min(shape, default=0) >= 0:
        with contextlib.suppress(ValueError, OverflowError):  # what numpy says of more dimensions, or larger ones, than it has
            if datatype == "BYTES":
                items = _items(bytes(content))
                if items is not None and len(items) == math.prod(shape):
                    texts: NDArray[Any] = np.array(items, dtype=object).reshape(shape)
                    return texts
            elif datatype in _DTYPES and len(content) == math.prod(shape) * _DTYPES[datatype].itemsize:
                return np.frombuffer(content, dtype=_DTYPES[datatype]).reshape(shape)
    raise service_error(
        ServerFailedError, what, f"its answer holds {len(content)} bytes for an output of type {datatype} and shape {list(shape)}"
    )


def _items(content: bytes) -> list[bytes] | None:
    """The length-prefixed items of a BYTES tensor; None where the lengths do not fit the content."""
    items, at = [], 0
    while at < len(content):
        if at + 4 > len(content):
            return None
        (length,) = struct.unpack_from("<I", content, at)
        at += 4 + length
        if at > len(content):
            return None
        items.append(content[at - length : at])
    return items
