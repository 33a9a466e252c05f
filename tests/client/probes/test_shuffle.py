from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import InputError
from defensemble.probes import FunctionTarget, LabelledImages, ProbeImage, Shuffle, measure
from tests.support.facts import raises


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32), st.integers(0, 99))
def test_tiles_are_permuted_whole_and_never_stay_in_order(k: int, channels: int, height: int, width: int, seed: int, row: int) -> None:
    shape = (channels, k * height, k * width)
    pixels = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)  # all pixels differ
    probe = Shuffle((k,), seed=seed)
    (condition,) = probe.conditions()
    shuffled, again = (probe.perturb(ProbeImage(pixels, 0, row), condition, probe.rng(condition, row)) for _ in range(2))
    assert shuffled.shape == shape
    assert shuffled.dtype == np.float32
    np.testing.assert_array_equal(shuffled, again)
    assert not np.array_equal(shuffled, pixels)
    np.testing.assert_array_equal(np.sort(shuffled, axis=None), np.sort(pixels, axis=None))
    blocks = [np.s_[:, y : y + height, x : x + width] for y in range(0, k * height, height) for x in range(0, k * width, width)]
    assert sorted(shuffled[block].tobytes() for block in blocks) == sorted(pixels[block].tobytes() for block in blocks)


def test_each_image_has_its_own_permutation() -> None:
    probe, pixels = Shuffle((4,)), np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    (condition,) = probe.conditions()
    assert len({probe.perturb(ProbeImage(pixels, 0, row), condition, probe.rng(condition, row)).tobytes() for row in range(20)}) == 20


def test_sizes_that_are_no_multiple_are_rejected_before_the_first_query() -> None:
    asked: list[int] = []

    def classify(images: Any) -> Any:
        asked.append(len(images))
        return np.zeros((len(images), 2))

    target = FunctionTarget("a", classify)
    data = LabelledImages(np.zeros((2, 1, 12, 18), np.float32), np.zeros(2, np.int64))
    with raises(InputError, "12 x 18 | 4 x 4 | 2, 3, 6"):
        measure(Shuffle((2, 4)), [target], data)
    assert not asked


@pytest.mark.parametrize("k", [(), (1,), (2, 2), (0,)])
def test_invalid_k_is_rejected(k: tuple[int, ...]) -> None:
    with raises(InputError, "k | 2"):
        Shuffle(k)
