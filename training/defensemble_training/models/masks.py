"""Draw masks of defective neurons, as a pure function of seed, name and shape.

The algorithm is fixed (version 1), so that a seed gives the same bytes on every platform and with every library version:

1. The stream of a mask is SHAKE-256 of the UTF-8 text `defensemble-mask-v1:<seed in decimal>:<name>`, read as consecutive little-endian
   unsigned 64-bit integers, one per position, with positions in C order.
2. `bernoulli` keeps a position if the top 53 bits of its integer, k >> 11, are less than keep * 2**53. Positions are independent of each
   other, and (k >> 11) / 2**53 is uniform on [0, 1).
3. `exact` keeps the max(1, floor(keep * n + 0.5)) of the n positions that have the smallest integers; the first wins a tie.

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
    """Draw the mask of one layer: True for kept neurons, False for defective ones.

    The result broadcasts over images (N, C, H, W): (C, H, W) for the pattern `neuron`, (C, 1, 1) for `channel`, (1, H, W) for `shared`.
    `bernoulli` keeps each position with probability `keep`; `exact` keeps max(1, floor(keep * n + 0.5)) of the n positions.
    The module's docstring specifies the algorithm. Source: arXiv 1911.08432, section 3.

    Args:
        shape: (C, H, W) of the masked tensor, each at least 1.
        keep: Keep probability in (0, 1].
        pattern: `neuron`, `channel` or `shared`.
        sampling: `bernoulli` or `exact`.
        seed: Seed of all masks of a network, at least 0.
        name: Path of the layer in the network. Different names give independent masks.

    Raises:
        SpecError: A value is out of range.

    Example:
        >>> mask = defect_mask((64, 32, 32), keep=0.5, seed=0, name="stem.defect")
    """
    keep = checked_keep(keep)
    check_choice("pattern", pattern, PATTERNS)
    check_choice("sampling", sampling, SAMPLINGS)
    seed = checked_integer("seed", seed, minimum=0)
    if not name:
        raise SpecError("name must be the path of a layer, got an empty string")
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence) or len(shape) != 3:
        raise SpecError(f"shape must be (C, H, W), got {shape!r}")
    channels, height, width = (checked_integer("each of (C, H, W)", extent, minimum=1) for extent in shape)
    shape = mask_shape((channels, height, width), pattern)
    keys = uniform_keys(f"defensemble-mask-v1:{seed}:{name}", math.prod(shape))
    if sampling == "bernoulli":
        kept: BoolArray = (keys >> np.uint64(11)) < np.uint64(math.ceil(keep * 2**53))
    else:
        kept = np.zeros(keys.size, dtype=np.bool_)
        kept[np.argsort(keys, kind="stable")[: max(1, int(keep * keys.size + 0.5))]] = True
    return kept.reshape(shape)


def mask_shape(shape: tuple[int, int, int], pattern: str) -> tuple[int, int, int]:
    """Return the mask's shape for a tensor (C, H, W)."""
    channels, height, width = shape
    return {"neuron": (channels, height, width), "channel": (channels, 1, 1), "shared": (1, height, width)}[pattern]


def uniform_keys(text: str, count: int) -> npt.NDArray[np.uint64]:
    """Return `count` uniform 64-bit integers that depend only on a text (SHAKE-256, little-endian)."""
    stream = hashlib.shake_256(text.encode()).digest(8 * count)
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


def mask_digest(masks: Mapping[str, npt.NDArray[Any]]) -> str:
    r"""Return the SHA-256 (64 hexadecimal digits) of masks, which identifies them in checkpoints and exported models.

    The input of the hash is, for each mask in order of the names (by code point): the name in UTF-8, `\0`, the shape as decimal numbers
    separated by commas, `\0`, and the values as uint8 (0 or 1) in C order. Without masks it is empty. Names are full buffer names, such as
    `stem.defect.mask`.

    Raises:
        SpecError: An array is not bool.
    """
    digest = hashlib.sha256()
    for name in sorted(masks):
        mask = masks[name]
        if mask.dtype != np.bool_:
            raise SpecError(f"the mask {name!r} must be a bool array, got {mask.dtype}")
        digest.update(name.encode() + b"\0" + ",".join(str(extent) for extent in mask.shape).encode() + b"\0")
        digest.update(mask.astype(np.uint8).tobytes(order="C"))
    return digest.hexdigest()


def checked_keep(keep: object) -> float:
    """Return a keep probability as a float, or raise a `SpecError` if it is not a number in (0, 1]."""
    return checked_number("keep", keep, "in (0, 1] (1.0: the standard network)", lambda value: 0 < value <= 1)
