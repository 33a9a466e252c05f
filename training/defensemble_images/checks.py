"""Check arrays of images, float32 (N, C, H, W) in [0, 1]. Each package raises the returned text as its own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT32 = np.dtype(np.float32)
# Read as integers, the floats in [0, 1] are the numbers up to this one; negative ones, larger ones and NaN are above. To look for the
# largest integer takes half as long as minimum and maximum do.
_BITS_OF_ONE = int(np.float32(1).view(np.uint32))


def image_problem(
    images: object,
    name: str = "images",
    *,
    shape: Sequence[int | None] = (None, None, None),
    consumer: str = "",
    in_range: bool = True,
) -> str | None:
    """Describe what is wrong with images and how to fix it, or return None if they are valid.

    Valid images are a plain numpy array, float32 (N, C, H, W) in [0, 1], with N >= 1.

    Args:
        images: The value to check.
        name: Name of the images in the text.
        shape: Expected (C, H, W), with None for any size.
        consumer: What requires this shape, such as "model 'alpha'".
        in_range: Whether to check the values. False saves a pass over them.

    Example:
        >>> image_problem(np.zeros((1, 3, 32, 32), np.float32), shape=(3, 28, 28), consumer="model 'alpha'")
        "images must have the shape (N, 3, 28, 28) for model 'alpha', got (1, 3, 32, 32)"
    """
    if not isinstance(images, np.ndarray):
        got = f"{type(images).__module__}.{type(images).__qualname__}"
        return f"{name} must be a numpy array, got {got}: pass numpy.asarray(images, dtype=numpy.float32)"
    if type(images) is not np.ndarray and isinstance(images, np.ma.MaskedArray):  # numpy.ma takes 30 ms to import
        return f"{name} must be a plain numpy array, got a masked one: pass images.filled(VALUE), with a value in [0, 1]"
    if images.dtype != np.float32:
        fix = "images.astype(numpy.float32) / 255" if images.dtype == np.uint8 else "images.astype(numpy.float32), with values in [0, 1]"
        return f"{name} must be float32 in [0, 1], got {images.dtype}: pass {fix}"
    if images.ndim != 4 or any(size not in (None, got) for size, got in zip(shape, images.shape[1:], strict=True)):
        expected = ", ".join(letter if size is None else str(size) for letter, size in zip("CHW", shape, strict=True))
        needed_by = f" for {consumer}" if consumer else ""
        return f"{name} must have the shape (N, {expected}){needed_by}, got {images.shape}{_shape_fix(images, shape)}"
    if images.shape[0] == 0:
        return f"{name} must hold at least one image, got an empty batch of shape {images.shape}"
    if images.size == 0:
        return f"{name} must have at least one channel and one pixel, got the shape {images.shape}"
    return range_problem(np.asarray(images), name) if in_range else None


def range_problem(images: NDArray[Any], name: str = "images") -> str | None:
    """Describe the values of an array that are outside [0, 1], or return None if none are.

    Args:
        images: A float array with at least one value.
        name: Name of the images in the text.
    """
    if images.dtype == _FLOAT32:
        bits = images.view(np.uint32)
        if bits.item(bits.argmax()) <= _BITS_OF_ONE:
            return None
    low, high = np.minimum.reduce(images, axis=None), np.maximum.reduce(images, axis=None)
    if low >= 0 and high <= 1:  # False for NaN, which min and max propagate
        return None
    bad = np.count_nonzero(~np.isfinite(images))
    if bad:
        return f"{name} must be finite, got {bad} values that are NaN or infinite; expected values in [0, 1]"
    fix = "divide by 255" if low >= 0 and 4 < high <= 255 else "undo the normalisation (it is the model's first layer), or clip the values"
    return f"{name} must be in [0, 1], got values from {low:.6g} to {high:.6g}: {fix}"


def _shape_fix(images: NDArray[Any], shape: Sequence[int | None]) -> str:
    if images.ndim == 3:
        return ": pass images[numpy.newaxis] for one image"
    if images.ndim == 4 and images.shape[3] == shape[0] != images.shape[1]:
        return ": pass images.transpose(0, 3, 1, 2), channels first"
    return ""
