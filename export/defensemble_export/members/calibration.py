"""Which training images an int8 export is calibrated on, and what is recorded of them."""

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
    """The images of a calibration: how many, drawn by which seed, from where, and the SHA-256 of their float32 values in C order.

    Raises:
        ExportError: `count` is not 2 or more, or `seed` negative.
    """

    count: int = DEFAULT_COUNT
    seed: int = DEFAULT_SEED
    source: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        for what, number in (("count", self.count), ("seed", self.seed)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ExportError(f"the {what} of a calibration must be an integer, got {number!r}")
        if self.count < 2:
            raise ExportError(f"a calibration takes at least 2 images, got {self.count}; {DEFAULT_COUNT} is the default")
        if self.seed < 0:
            raise ExportError(f"the seed of a calibration must be 0 or more, got {self.seed}")


def calibration_images(
    images_at: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    total: int,
    *,
    source: str,
    count: int = DEFAULT_COUNT,
    seed: int = DEFAULT_SEED,
) -> tuple[NDArray[np.float32], Calibration]:
    """Draw `count` of `total` training images, without repetition, in the order in which they lie; all where there are fewer.

    `images_at` returns the images with these numbers, float32 (n, C, H, W) in [0, 1]: `dataset.train.images`, or an array's
    `__getitem__`. `source` says where they come from.

    Raises:
        ExportError: there are fewer than 2 images to draw from, `count` is below 2, or `seed` negative.
    """
    asked = Calibration(count, seed, source)
    if total < 2:
        raise ExportError(f"int8 is calibrated on at least 2 training images, {source} holds {total}: name other data, or export as fp16")
    numbers = np.sort(np.random.default_rng(seed).choice(total, min(asked.count, total), replace=False)).astype(np.int64)
    images = images_at(numbers)
    return images, Calibration(len(images), seed, source, hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest())
