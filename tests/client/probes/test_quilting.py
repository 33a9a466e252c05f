from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble.probes.quilting import _seam, luminance, patches, quilt, scrambled, with_values_of

Array = np.ndarray[Any, Any]


def picture(channels: int, height: int, width: int, seed: int) -> Array:
    pixels: Array = np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)
    return pixels


def greedy(layout: Array, pool: Array, overlap: int, weight: float) -> Array:
    """Slow and simple: the costs of each patch as sums over pixels, and seams over all paths."""
    size = pool.shape[2]
    image = np.zeros((pool.shape[1], *layout.shape), np.int64)
    known = np.zeros(layout.shape, bool)
    starts = [[*range(0, length - size, size - overlap), length - size] for length in layout.shape]
    for top in starts[0]:
        for left in starts[1]:
            at = np.s_[top : top + size, left : left + size]
            here, seen = image[:, top : top + size, left : left + size], known[at]
            costs = []
            for patch in pool.astype(np.int64):
                cost = weight * ((luminance(patch) - layout[at]) ** 2).mean()
                if seen.any():
                    cost += (1 - weight) * (((patch - here) ** 2).sum(0)[seen]).mean()
                costs.append(cost)
            patch = pool[int(np.argmin(np.round(costs, 6)))].astype(np.int64)
            columns, rows = int(seen[-1].sum()) if left else 0, int(seen[:, -1].sum()) if top else 0
            difference = ((patch - here) ** 2).sum(0)
            new = np.ones((size, size), bool)
            new[:, :columns] &= best_path(difference[:, :columns])
            new[:rows] &= best_path(difference[:rows].T).T
            here[:, new] = patch[:, new]
            known[at] = True
    return image.astype(np.uint8)


def best_path(difference: Array) -> Array:
    """The smallest sum over all paths from the bottom to the top, where the leftmost of equal ones wins."""
    rows, columns = difference.shape
    if not columns:
        return np.ones((rows, 0), bool)
    paths = [[column] for column in range(columns)]
    for _ in range(rows - 1):
        paths = [[*path, column] for path in paths for column in range(max(path[-1] - 1, 0), min(path[-1] + 2, columns))]
    smallest = min(sum(int(difference[-1 - row, column]) for row, column in enumerate(path)) for path in paths)
    best = min(path for path in paths if sum(int(difference[-1 - row, column]) for row, column in enumerate(path)) == smallest)
    return np.array([[column >= best[rows - 1 - row] for column in range(columns)] for row in range(rows)])


@settings(max_examples=6, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(8, 11), st.integers(8, 11), st.integers(0, 99), st.sampled_from([0.2, 0.5, 1.0]))
def test_a_quilt_equals_the_slow_and_simple_one(channels: int, height: int, width: int, seed: int, weight: float) -> None:
    layout, pool = luminance(picture(channels, height, width, seed)), patches(picture(channels, 8, 8, seed + 1), 4)
    np.testing.assert_array_equal(quilt(layout, pool, 2, weight), greedy(layout, pool, 2, weight))


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 999))
@settings(max_examples=30)
def test_the_seam_has_the_smallest_sum_of_all_paths(rows: int, columns: int, seed: int) -> None:
    difference = np.random.default_rng(seed).integers(0, 5, (rows, columns))

    def cost(is_new: Array) -> int:
        return sum(int(difference[row, is_new[row].argmax()]) for row in range(rows))

    seam = _seam(difference)
    assert cost(seam) == cost(best_path(difference))
    assert (np.diff(seam.astype(int), axis=1) >= 0).all()


def test_an_image_is_rebuilt_from_its_own_patches() -> None:
    pixels = picture(3, 16, 16, 0)
    np.testing.assert_array_equal(quilt(luminance(pixels), patches(pixels, 4), 1, 0.5), pixels)


def test_patches_are_all_or_a_grid_of_at_most_1024() -> None:
    small = picture(3, 32, 32, 0)
    assert patches(small, 4).shape == (29 * 29, 3, 4, 4)
    np.testing.assert_array_equal(patches(small, 4)[29 * 2 + 5], small[:, 2:6, 5:9])
    large = picture(1, 224, 200, 0)
    assert 256 < len(patches(large, 25)) <= 1024
    np.testing.assert_array_equal(patches(large, 25)[1], large[:, :25, 6:31])


def test_luminance_is_that_of_pillow() -> None:
    from PIL import Image

    pixels = picture(3, 9, 7, 3)
    grey = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
    assert np.abs(luminance(pixels) - grey).max() <= 1
    np.testing.assert_array_equal(luminance(pixels[:1]), pixels[0])


def test_matched_values_keep_their_order() -> None:
    layout, values = np.random.default_rng(0).permutation(30).reshape(6, 5), picture(1, 5, 6, 1)[0].astype(np.int64)
    matched = with_values_of(layout, values)
    np.testing.assert_array_equal(np.sort(matched, axis=None), np.sort(values, axis=None))
    assert (np.diff(matched.ravel()[np.argsort(layout, axis=None)]) >= 0).all()


def test_an_even_area_stays_even() -> None:
    layout, values = np.array([[1, 5, 5], [5, 9, 9]]), np.array([[10, 0, 30], [21, 50, 40]])
    np.testing.assert_array_equal(with_values_of(layout, values), [[0, 20, 20], [20, 45, 45]])


@pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
def test_a_scrambled_layout_has_the_same_spectrum(shape: tuple[int, int]) -> None:
    layout = picture(1, *shape, 2)[0].astype(np.int64)
    changed = scrambled(layout, np.random.default_rng(0))
    np.testing.assert_allclose(np.abs(np.fft.fft2(changed)), np.abs(np.fft.fft2(layout)), rtol=1e-6)
    assert np.abs(changed - layout).max() > 10
