"""Arrays in JSON: compact, exact, and checked when they are read."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_ARRAY_BYTES = 1 << 28
"""Largest array that is read, as it is returned: zlib shrinks zeros a thousandfold, so that a small file could fill the memory."""
_INTEGERS = ("|i1", "<i2", "<i4", "<i8")
_FLOATS = ("<f4", "<f8")
_DTYPES = ("|b1", *_INTEGERS, *_FLOATS)


def pack(values: NDArray[Any]) -> dict[str, Any]:
    """Return an array as JSON: `dtype`, `shape`, and `zlib`, the compressed bytes in base64.

    The dtype is the smallest signed integer or float that holds every value exactly.

    Example:
        >>> pack(np.array([3, 1, 4]))
        {'dtype': '|i1', 'shape': [3], 'zlib': 'eNpjZmQBAAASAAk='}
    """
    smallest = _smallest(values)
    return {
        "dtype": smallest.dtype.str,
        "shape": list(values.shape),
        "zlib": base64.b64encode(zlib.compress(smallest.tobytes(), 9)).decode(),
    }


def is_packed(value: Any) -> bool:
    """Return whether a value of JSON has the form that `pack` returns."""
    return isinstance(value, Mapping) and set(value) == {"dtype", "shape", "zlib"}


def unpack(packed: Any, dtype: type[Scalar], shape: tuple[int | None, ...], where: str) -> NDArray[Scalar]:
    """Return the array that `pack` made.

    Args:
        packed: What `pack` returned, read from JSON.
        dtype: Type of the result: `np.bool_`, `np.int64` or `np.float64`.
        shape: Expected shape; None for an axis of any length.
        where: Name of the array, for the error.

    Raises:
        InputError: It is not a packed array of this shape and kind, it is damaged, or it is larger than `MAX_ARRAY_BYTES`.
    """
    if not is_packed(packed):
        raise InputError(f"{where} must be an object with dtype, shape and zlib; got {packed!s:.80}")
    stored_name, lengths, text = packed["dtype"], packed["shape"], packed["zlib"]
    if not isinstance(stored_name, str) or stored_name not in _DTYPES or not isinstance(text, str):
        raise InputError(f"{where} must have one of the dtypes {', '.join(_DTYPES)} and its bytes as base64; got dtype {stored_name!s:.40}")
    stored = np.dtype(stored_name)
    if stored.kind != np.dtype(dtype).kind:
        raise InputError(f"{where} has the dtype {stored_name}; expected {np.dtype(dtype)} or a smaller one of its kind")
    if not isinstance(lengths, list) or any(type(length) is not int or length < 0 for length in lengths):
        raise InputError(f"{where} must have a list of lengths as its shape; got {lengths!s:.80}")
    if len(lengths) != len(shape) or any(wanted not in (None, got) for wanted, got in zip(shape, lengths, strict=True)):
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise InputError(f"{where} has the shape {lengths!s:.80}; expected [{expected}]")
    count = math.prod(lengths)
    largest = count * max(stored.itemsize, np.dtype(dtype).itemsize)
    if largest > MAX_ARRAY_BYTES:
        raise InputError(f"{where} has {largest:,} bytes; at most {MAX_ARRAY_BYTES:,} are read")
    return np.frombuffer(_inflate(text, count * stored.itemsize, where), stored).reshape(lengths).astype(dtype)


def _inflate(text: str, size: int, where: str) -> bytes:
    """Return exactly `size` decompressed bytes."""
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise InputError(f"{where} is damaged: {error}") from error
    if len(content) != size or not inflater.eof or inflater.unused_data:
        found = f"{len(content):,}" if inflater.eof else "another number"
        raise InputError(f"{where} is damaged: it must hold {size:,} bytes, and {found} were found")
    return content


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind == "b":
        return values
    if values.dtype.kind == "i":
        bounds = (int(values.min()), int(values.max())) if values.size else (0, 0)
        name = next(name for name in _INTEGERS if np.iinfo(name).min <= bounds[0] and bounds[1] <= np.iinfo(name).max)
        return values.astype(name)
    if values.dtype.kind != "f":
        raise InputError(f"arrays of bool, signed integers and floats can be packed; got {values.dtype}")
    with np.errstate(over="ignore"):  # a double beyond the range of float32 becomes infinite, and is not equal
        single = values.astype("<f4")
    return single if np.array_equal(single.astype("<f8"), values, equal_nan=True) else values.astype("<f8")
