"""One check for arrays of images, float32 (N, C, H, W) in [0, 1], for every package; each raises what is wrong as its own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def image_problem(
    images: object,
    name: str = "images",
    *,
    shape: Sequence[int | None] = (None, None, None),
    consumer: str = "",
    in_range: bool = True,
) -> str | None:
    """Return what is wrong with images, called `name`, and how to fix it; None where nothing is.

    They must be a plain numpy array, float32 (N, C, H, W) in [0, 1], with N at least 1. `shape` holds C, H and W, None for any; `consumer`
    needs it, such as "model 'alpha'". Without `in_range` the values are not looked at, which saves a pass over them.
    """
    if not isinstance(images, np.ndarray):
        got = f"{type(images).__module__}.{type(images).__qualname__}"
        return f"{name} must be a numpy array, got {got}: pass numpy.asarray(images, dtype=numpy.float32)"
    if isinstance(images, np.ma.MaskedArray):
        return f"{name} must be a plain numpy array, got a masked one: pass images.filled(VALUE), with a value in [0, 1]"
    if images.dtype != np.float32:
        fix = "images.astype(numpy.float32) / 255" if images.dtype == np.uint8 else "images.astype(numpy.float32), with values in [0, 1]"
        return f"{name} must be float32 in [0, 1], got {images.dtype}: pass {fix}"
    if images.ndim != 4 or any(want not in (None, got) for want, got in zip(shape, images.shape[1:], strict=True)):
        wanted = ", ".join(letter if size is None else str(size) for letter, size in zip("CHW", shape, strict=True))
        return (
            f"{name} must have the shape (N, {wanted}){' for ' * bool(consumer)}{consumer}, got {images.shape}{_shape_fix(images, shape)}"
        )
    if images.shape[0] == 0:
        return f"{name} must be at least one, got an empty batch of shape {images.shape}"
    return range_problem(np.asarray(images), name) if in_range else None


def range_problem(images: NDArray[Any], name: str = "images") -> str | None:
    """Return what is wrong with the values of floats, at least one, that must lie in [0, 1]; None where nothing is."""
    low, high = np.minimum.reduce(images, axis=None), np.maximum.reduce(images, axis=None)
    if low >= 0 and high <= 1:  # NaN, which min and max pass on, fails it
        return None
    bad = np.count_nonzero(~np.isfinite(images))
    if bad:
        return f"{name} must be finite, got {bad} values that are NaN or infinite; expected values in [0, 1]"
    fix = "divide by 255" if low >= 0 and 4 < high <= 255 else "undo the normalisation, which is the model's own first layer, or clip"
    return f"{name} must lie in [0, 1], got values from {low:.6g} to {high:.6g}: {fix}"


def _shape_fix(images: NDArray[Any], shape: Sequence[int | None]) -> str:
    if images.ndim == 3:
        return ": pass images[numpy.newaxis] for one image"
    if images.ndim == 4 and images.shape[3] == shape[0] != images.shape[1]:
        return ": pass images.transpose(0, 3, 1, 2), channels first"
    return ""
