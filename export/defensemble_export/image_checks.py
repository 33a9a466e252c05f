"""Whether an array holds images as every part of this package takes them: float32 (N, C, H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import ExportError


def check_images(images: object, shape: Sequence[int | None], purpose: str, *, error: type[ExportError] = ExportError) -> None:
    """Refuse what is not at least one float32 image in [0, 1].

    Args:
        images: an array (N, C, H, W).
        shape: the expected (C, H, W); None for an extent that is free.
        purpose: what the images are for, as errors call it.
        error: the class of the error.
    """
    what = f"the images for the {purpose}"
    expected = "(N, " + ", ".join("any" if extent is None else str(extent) for extent in shape) + ")"
    if not isinstance(images, np.ndarray):
        raise error(f"{what} must be a numpy array {expected}, got {type(images).__name__}")
    fits = images.ndim == len(shape) + 1 and all(want in (None, got) for want, got in zip(shape, images.shape[1:], strict=True))
    if not fits or not len(images):
        raise error(f"{what} have the shape {images.shape}, expected {expected} with N of at least 1: pass images of that shape")
    if images.dtype != np.float32:
        raise error(f"{what} are {images.dtype}, expected float32 in [0, 1]: convert them with .astype")
    if not (images.min() >= 0 and images.max() <= 1):  # also where one is NaN
        raise error(
            f"{what} must lie in [0, 1], got values from {images.min():g} to {images.max():g}: "
            "divide those of 0 to 255 by 255, and leave out what is not a number"
        )
