"""The patch shuffle: accuracy on images whose tiles are permuted, which keeps local texture and destroys the shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .base import Condition, LabelledImages, OnProgress, Perturb, PerturbationProbe, ProbeImage


@dataclass(frozen=True)
class Shuffle(PerturbationProbe):
    """Permute the tiles of each image: k x k tiles of equal size, in a random order that is never the original one.

    Attributes:
        k: Tiles per side, at least 2. Height and width of the images must be multiples of each.

    Example:
        >>> Shuffle(k=(2, 4)).perturb(ProbeImage(pixels, label=3, row=17), Condition("k 2", 2.0), np.random.default_rng(0))
    """

    k: tuple[int, ...] = (2, 4, 8)

    name: ClassVar[str] = "shuffle"
    paper: ClassVar[str | None] = "arXiv:1911.08432, tables 1 and 13"

    def __post_init__(self) -> None:
        if not self.k or len(set(self.k)) != len(self.k) or min(self.k) < 2:
            raise InputError(f"k must be different numbers of tiles per side, each at least 2; got {', '.join(map(str, self.k)) or 'none'}")

    @property
    def title(self) -> str:
        """What is done to the images."""
        return "Patch shuffle"

    @property
    def threat_model(self) -> str:
        """What is done to an image."""
        return "No attacker: each image is cut into k x k tiles, which are permuted at random, never in the original order."

    def conditions(self) -> Sequence[Condition]:
        """Return one condition for each k."""
        return [Condition(f"k {k}", float(k), "tiles per side", "shuffle") for k in self.k]

    def prepare(self, data: LabelledImages, rows: NDArray[np.int64], on_progress: OnProgress) -> Perturb:
        """Check the size of the images before the first query."""
        for k in self.k:
            _tile_shape(data.images.shape[1:], k)
        return self.perturb

    def perturb(self, image: ProbeImage, condition: Condition, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the image with permuted tiles."""
        k = int(condition.value or 0)
        order = np.arange(k * k)
        while (order == np.arange(k * k)).all():
            order = rng.permutation(k * k)
        channels, height, width = image.pixels.shape
        tile = _tile_shape(image.pixels.shape, k)
        tiles = image.pixels.reshape(channels, k, tile[0], k, tile[1]).transpose(1, 3, 0, 2, 4).reshape(k * k, channels, *tile)
        permuted = tiles[order].reshape(k, k, channels, *tile).transpose(2, 0, 3, 1, 4)
        return np.ascontiguousarray(permuted).reshape(channels, height, width)


def _tile_shape(shape: tuple[int, ...], k: int) -> tuple[int, int]:
    """Return height and width of a tile."""
    height, width = shape[1:]
    if height % k or width % k:
        possible = [size for size in range(2, min(height, width) + 1) if height % size == 0 and width % size == 0]
        raise InputError(
            f"images of {height} x {width} pixels cannot be cut into {k} x {k} equal tiles; "
            + (f"expected k to divide both: one of {', '.join(map(str, possible))}" if possible else "no k divides both")
        )
    return height // k, width // k
