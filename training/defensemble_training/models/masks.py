"""Which neurons of a layer are defective: masks as a pure function of seed, name and shape.

The algorithm is fixed (version 1), so that one seed gives the same bytes on every platform and with every library version:

1. The stream of a mask is SHAKE-256 of the UTF-8 text `defensemble-mask-v1:<seed in decimal>:<name>`, read as
   consecutive little-endian unsigned 64-bit integers, one a position, positions in C order.
2. `bernoulli`: a position is kept where the top 53 bits of its integer, k >> 11, are less than keep * 2**53. Every position is
   independent of the others, and k / 2**53 is uniform on [0, 1).
3. `exact`: max(1, floor(keep * n + 0.5)) of the n positions are kept, those with the smallest integers; of equal ones the first.

`keep * 2**53` only changes an exponent and is exact; `keep * n + 0.5` is IEEE double arithmetic. Nothing depends on numpy's random
generators, whose streams may change between versions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..validation import check_choice, checked_integer, checked_number

PATTERNS = ("neuron", "channel", "shared")
SAMPLINGS = ("bernoulli", "exact")

BoolArray = npt.NDArray[np.bool_]


def defect_mask(
    shape: Sequence[int], keep: float, pattern: str = "neuron", sampling: str = "bernoulli", *, seed: int, name: str
) -> BoolArray:
    """Draw the mask of one layer: True where a neuron is kept, False where it is defective.

    The result broadcasts over images (N, C, H, W): (C, H, W) for the pattern `neuron`, (C, 1, 1) for `channel`, (1, H, W) for `shared`.
    `bernoulli` keeps each position with probability `keep`; `exact` keeps max(1, floor(keep * n + 0.5)) of the n positions.
    The algorithm stands at the top of this file. Source: arXiv 1911.08432, section 3.

    Args:
        shape: (C, H, W) of the masked tensor, each at least 1.
        keep: keep probability in (0, 1].
        pattern: `neuron`, `channel` or `shared`.
        sampling: `bernoulli` or `exact`.
        seed: the seed of all masks of a network, at least 0.
        name: the name of the layer within the network; different names give independent masks.

    Raises:
        SpecError: a value is outside of its range.
    """
    keep = checked_keep(keep)
    check_choice("pattern", pattern, PATTERNS)
    check_choice("sampling", sampling, SAMPLINGS)
    seed = checked_integer("seed", seed, minimum=0)
    if not name:
        raise SpecError("name must be the path of a layer, got an empty text")
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise SpecError(f"shape must be (C, H, W), got {shape!r}")
    channels, height, width = (checked_integer("each of (C, H, W)", extent, minimum=1) for extent in shape)
    drawn = mask_shape((channels, height, width), pattern)
    keys = uniform_keys(f"defensemble-mask-v1:{seed}:{name}", math.prod(drawn))
    if sampling == "bernoulli":
        kept: BoolArray = (keys >> np.uint64(11)) < np.uint64(math.ceil(keep * 2**53))
    else:
        kept = np.zeros(keys.size, dtype=np.bool_)
        kept[np.argsort(keys, kind="stable")[: max(1, int(keep * keys.size + 0.5))]] = True
    return kept.reshape(drawn)


def mask_shape(shape: tuple[int, int, int], pattern: str) -> tuple[int, int, int]:
    """Return the shape of the mask of a tensor (C, H, W)."""
    channels, height, width = shape
    return {"neuron": (channels, height, width), "channel": (channels, 1, 1), "shared": (1, height, width)}[pattern]


def uniform_keys(text: str, count: int) -> npt.NDArray[np.uint64]:
    """Return `count` uniform 64-bit integers, the same ones for a text on every platform (SHAKE-256, little-endian)."""
    stream = hashlib.shake_256(text.encode()).digest(8 * count)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def mask_digest(masks: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of masks, by which a checkpoint and an exported model are recognised.

    Hashed are, for every mask in the order of the names (by code points): the name in UTF-8, a zero byte, the shape as decimal numbers with
    commas between them, a zero byte, and the values as uint8 (0 or 1) in C order. No masks give the SHA-256 of nothing. Names are full
    buffer names, such as `stem.defect.mask`.

    Raises:
        SpecError: an array is not of bool.
    """
    digest = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name]
        if mask.dtype != np.bool_:
            raise SpecError(f"the mask {name!r} must be an array of bool, got {mask.dtype}")
        digest.update(name.encode() + b"\0" + ",".join(str(extent) for extent in mask.shape).encode() + b"\0")
        digest.update(mask.astype(np.uint8).tobytes(order="C"))
    return digest.hexdigest()


def checked_keep(keep: object) -> float:
    """Return a keep probability as a float, or raise a `SpecError` where it is not a number in (0, 1]."""
    return checked_number("keep", keep, "in (0, 1] (1.0: the standard network)", lambda value: 0 < value <= 1)
