"""Images with the layout of one image and the texture of another: image quilting (Efros & Freeman, SIGGRAPH 2001), in numpy.

Each patch of the result is a patch of the texture's image. It is the one that fits best to the luminance of the layout and to the patches
that are already placed, and the seam between them follows the smallest difference. All sums are of integers in float64, hence exact: the
result does not depend on the order in which a CPU adds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 (C, H, W)."""
_MAX_PATCHES = 1024  # of one image; a 32x32 image has 841 patches of 4x4


def luminance(image: Pixels) -> NDArray[np.int64]:
    """Return the luminance (ITU-R 601) of an image with 1 or 3 channels, rounded, int64 (H, W)."""
    values = image.astype(np.int64)
    weights = (1000,) if len(values) == 1 else (299, 587, 114)
    return (np.tensordot(weights, values, 1) + 500) // 1000


def patches(image: Pixels, size: int) -> NDArray[np.uint8]:
    """Return square patches of an image, uint8 (n, C, size, size): all, or a regular grid of at most 1,024.

    Args:
        image: The image.
        size: Side of a patch.
    """
    windows = sliding_window_view(image, (size, size), axis=(1, 2))
    step = 1
    while -(-windows.shape[1] // step) * -(-windows.shape[2] // step) > _MAX_PATCHES:
        step += 1
    return np.asarray(windows[:, ::step, ::step].transpose(1, 2, 0, 3, 4).reshape(-1, len(image), size, size))


def with_values_of(layout: NDArray[Any], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `layout` with its values replaced by `values`, in the same order of brightness (histogram matching).

    Equal values are replaced by one, the rounded mean of theirs, so that an even area stays even.

    Args:
        layout: (H, W).
        values: As many values, of any shape.
    """
    _, inverse, counts = np.unique(layout, return_inverse=True, return_counts=True)
    sums = np.add.reduceat(np.sort(values, axis=None), np.cumsum(counts) - counts)
    replaced: NDArray[np.int64] = (2 * sums + counts) // (2 * counts)
    return replaced[inverse].reshape(layout.shape)


def scrambled(layout: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a layout with the same power spectrum and random phases, which has no shapes.

    Args:
        layout: (H, W).
        rng: Source of the phases.
    """
    noise = np.fft.rfft2(rng.standard_normal(layout.shape))
    spectrum = np.abs(np.fft.rfft2(layout)) * noise / np.abs(noise)
    return np.asarray(np.fft.irfft2(spectrum, layout.shape))


def quilt(layout: NDArray[np.int64], pool: NDArray[np.uint8], overlap: int, weight: float) -> Pixels:
    """Return an image of patches that follows the luminance of a layout.

    Args:
        layout: Luminance, int64 (H, W), 0 to 255.
        pool: Patches to choose from, uint8 (n, C, size, size).
        overlap: Width of the seam between patches.
        weight: Weight of the layout against the neighbours, in [0, 1].
    """
    size = pool.shape[2]

    @cache
    def overlapping(rows: int, columns: int) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        """Return where a patch overlaps earlier ones, and the values there of all patches in the pool, with the sums of their squares."""
        known = np.zeros(pool.shape[1:], np.bool_)
        known[:, :rows] = known[:, :, :columns] = True
        values = pool[:, known].astype(np.float64)
        return known, values, (values**2).sum(1)

    brightness = luminance(pool.swapaxes(0, 1)).reshape(len(pool), -1).astype(np.float64)
    brightness_squared = (brightness**2).sum(1)
    image = np.zeros((pool.shape[1], *layout.shape), np.uint8)
    bottom = 0
    for top in _starts(layout.shape[0], size, overlap):
        right = 0
        for left in _starts(layout.shape[1], size, overlap):
            known_rows, known_columns = bottom - top if top else 0, right - left if left else 0
            placed = image[:, top : top + size, left : left + size]
            # Squared differences without the square of what is there, which is the same for all patches.
            wanted = layout[top : top + size, left : left + size].ravel().astype(np.float64)
            cost = weight / size**2 * (brightness_squared - 2 * (brightness @ wanted))
            if known_rows or known_columns:
                known, values, squared = overlapping(known_rows, known_columns)
                cost += (1 - weight) / known[0].sum() * (squared - 2 * (values @ placed[known].astype(np.float64)))
            chosen = pool[int(cost.argmin())]
            difference = ((chosen.astype(np.int64) - placed) ** 2).sum(0)
            is_new = np.ones((size, size), np.bool_)
            is_new[:, :known_columns] &= _seam(difference[:, :known_columns])
            is_new[:known_rows] &= _seam(difference[:known_rows].T).T
            np.copyto(placed, chosen, where=is_new)
            right = left + size
        bottom = top + size
    return image


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """Return the first pixel of each patch; the last patch ends at the border."""
    return [*range(0, length - size, size - overlap), length - size]


def _seam(difference: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which pixels of an overlap are from the new patch: those right of the path from top to bottom with the smallest sum."""
    is_new = np.ones(difference.shape, np.bool_)
    if not difference.size:
        return is_new
    total = difference.copy()
    for row in range(1, len(total)):
        above = total[row - 1]
        best = above.copy()
        np.minimum(best[1:], above[:-1], out=best[1:])
        np.minimum(best[:-1], above[1:], out=best[:-1])
        total[row] += best
    column = int(total[-1].argmin())
    for row in range(len(total) - 1, -1, -1):
        is_new[row, :column] = False
        if row:
            first = max(column - 1, 0)
            column = first + int(total[row - 1, first : column + 2].argmin())
    return is_new
