"""Decode tensors.

As bytes, the KServe v2 protocol encodes them in the same way over gRPC and, in its binary extension, over HTTP.
"""

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


def array_from_wire(datatype: str, shape: tuple[int, ...], content: bytes | memoryview, context: str) -> NDArray[Any]:
    """Return a read-only array over `content` without a copy; BYTES become an object array of bytes.

    Args:
        datatype: The KServe datatype, such as `FP32`.
        shape: The tensor's shape.
        content: The tensor's bytes.
        context: The failed call, for the message of an error.

    Raises:
        ServerFailedError: The content does not match the shape, or the datatype is unknown.
    """
    if min(shape, default=0) >= 0:
        try:
            if datatype == "BYTES":
                items = _split_items(bytes(content))
                if items is not None and len(items) == math.prod(shape):
                    strings: NDArray[Any] = np.array(items, dtype=object).reshape(shape)
                    return strings
            elif datatype in _DTYPES and len(content) == math.prod(shape) * _DTYPES[datatype].itemsize:
                tensor: NDArray[Any] = np.ndarray(shape, _DTYPES[datatype], content)
                return tensor
        except (ValueError, OverflowError):  # from numpy, for too many or too large dimensions; contextlib.suppress takes 15 us of a call
            pass
    raise service_error(
        ServerFailedError, context, f"the response has {len(content)} bytes for an output of type {datatype} and shape {list(shape)}"
    )


def array_from_json(datatype: str, shape: tuple[int, ...], data: object, context: str) -> NDArray[Any]:
    """Return the array of a tensor whose values are JSON, flat or nested; BYTES become an object array of bytes.

    Args:
        datatype: The KServe datatype, such as `FP32`.
        shape: The tensor's shape.
        data: The values: numbers, booleans for BOOL, strings for BYTES.
        context: The failed call, for the message of an error.

    Raises:
        ServerFailedError: The values do not match the shape or the datatype, or the datatype is unknown.
    """
    if isinstance(data, list) and min(shape, default=0) >= 0:
        with contextlib.suppress(ValueError, OverflowError):  # numpy raises these for rows of different lengths and too large numbers
            # Of integers from 2**63 on together with small ones, numpy would make floating-point numbers.
            values = np.array(data, dtype=object if datatype in ("BYTES", "UINT64") else None)
            if values.size == math.prod(shape) and (values.ndim == 1 or values.shape == shape or not values.size):
                converted = _convert(values.reshape(shape), datatype)
                if converted is not None:
                    return converted
    reason = f"the response has an output of type {datatype} and shape {list(shape)} with the values {data!r:.100}"
    raise service_error(ServerFailedError, context, f"{reason}, which do not match")


def _convert(values: NDArray[Any], datatype: str) -> NDArray[Any] | None:
    """Return the values in the datatype, or None if it cannot hold them."""
    if datatype == "BYTES":
        if not all(isinstance(item, str) for item in values.flat):
            return None
        strings: NDArray[Any] = np.array([item.encode("utf-8", "surrogatepass") for item in values.flat], dtype=object)
        return strings.reshape(values.shape)
    dtype = _DTYPES.get(datatype)
    kinds = {"b": "b", "f": "iuf"}.get(dtype.kind, "iu") if dtype is not None else ""
    if datatype == "UINT64" and all(type(item) is int for item in values.flat):
        kinds = "O"
    if dtype is None or (values.size and values.dtype.kind not in kinds):
        return None
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    is_kept = np.isfinite(converted) == np.isfinite(values) if dtype.kind == "f" else converted == values
    converted.flags.writeable = False
    return converted if is_kept.all() else None


def _split_items(content: bytes) -> list[bytes] | None:
    """Return the length-prefixed items of a BYTES tensor, or None if the lengths do not match the content."""
    items, position = [], 0
    while position < len(content):
        if position + 4 > len(content):
            return None
        (length,) = struct.unpack_from("<I", content, position)
        position += 4 + length
        if position > len(content):
            return None
        items.append(content[position - length : position])
    return items
