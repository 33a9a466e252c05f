"""Select the training images on which an int8 export is calibrated, and record them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ExportError

DEFAULT_COUNT = 512
DEFAULT_SEED = 0


@dataclass(frozen=True)
class Calibration:
    """The images of a calibration.

    Args:
        count: Number of images, at least 2.
        seed: Seed of the selection, 0 or more.
        source: Where the images come from, in words.
        sha256: SHA-256 of their float32 values in C order.

    Raises:
        ExportError: `count` or `seed` is out of range.
    """

    count: int = DEFAULT_COUNT
    seed: int = DEFAULT_SEED
    source: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        for field, number in (("count", self.count), ("seed", self.seed)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ExportError(f"the calibration {field} must be an integer, got {number!r}")
        if self.count < 2:
            raise ExportError(f"the calibration count must be at least 2 images, got {self.count}; the default is {DEFAULT_COUNT}")
        if self.seed < 0:
            raise ExportError(f"the calibration seed must be 0 or more, got {self.seed}")


def calibration_images(
    images_at: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    total: int,
    *,
    source: str,
    count: int = DEFAULT_COUNT,
    seed: int = DEFAULT_SEED,
) -> tuple[NDArray[np.float32], Calibration]:
    """Draw training images for a calibration, without repetition and in the order of the dataset.

    Args:
        images_at: Returns the images at the given indices, float32 (n, C, H, W) in [0, 1]: `dataset.train.images`, or the
            `__getitem__` of an array.
        total: Number of images to draw from.
        source: Where the images come from, in words.
        count: Number of images to draw; all of them if there are fewer.
        seed: Seed of the selection.

    Returns:
        The images and the record of the calibration.

    Raises:
        ExportError: There are fewer than 2 images to draw from, or `count` or `seed` is out of range.

    Example:
        >>> images, calibration = calibration_images(dataset.train.images, len(dataset.train), source="training images of digits")
    """
    requested = Calibration(count, seed, source)
    if total < 2:
        raise ExportError(f"int8 is calibrated on at least 2 training images, but {source} has {total}: name other data, or export as fp16")
    numbers = np.sort(np.random.default_rng(seed).choice(total, min(requested.count, total), replace=False)).astype(np.int64)
    images = images_at(numbers)
    return images, Calibration(len(images), seed, source, hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest())
