"""Estimates from counts: their order, not their values, which belong to one machine."""

from __future__ import annotations

import numpy as np
import pytest

from defensemble_export.graphs.mask_aware.costs import LANES, batch_time, best_lanes, conv_counts, conv_time, time_at
from defensemble_export.graphs.mask_aware.expressions import FULL, MaskExpression
from defensemble_export.graphs.mask_aware.program import Conv, Window
from defensemble_export.graphs.mask_aware.supports import TensorSupport
from tests.support.program_interpreter import Array

WINDOW = Window((3, 3), (1, 1), (1, 1, 1, 1))


def support(keep: float, seed: int = 0) -> TensorSupport:
    rows = np.random.default_rng(seed).random((64, 16, 16)) < keep
    return TensorSupport(rows, rows)


def brute_force(source: Array, rows: Array) -> int:
    """Count the multiplications of kept inputs for kept outputs, one by one."""
    total = 0
    for _, y, x in zip(*np.nonzero(rows), strict=True):
        total += int(source[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].sum())
    return total


def test_counts_are_those_of_a_loop() -> None:
    source, result = support(0.2), support(0.1, 1)
    counts = conv_counts(Conv(0, "w", None, WINDOW, MaskExpression.of("m")), source, result)
    assert counts.kept == brute_force(source.support, result.rows)
    assert counts.unpadded == 64 * 64 * 46 * 46
    assert counts.rows == result.rows.sum()
    assert counts.inputs == brute_force(source.support, np.any(result.rows, axis=0, keepdims=True))


@pytest.mark.parametrize("lanes", LANES)
def test_more_neurons_cost_more(lanes: int) -> None:
    conv = Conv(0, "w", None, WINDOW, MaskExpression.of("m"))
    times = [conv_time(conv_counts(conv, support(keep), support(keep, 1)), lanes) for keep in (0.1, 0.3, 0.5, 0.7)]
    assert times == sorted(times)
    dense = Conv(0, "w", None, WINDOW, FULL)
    assert times[0] < conv_time(conv_counts(dense, support(1), support(1)), lanes)


def test_empty_lanes_cost_as_much_as_full_ones() -> None:
    times = {1: 40.0, 8: 12.0, 16: 10.0}
    assert time_at(times, 16, 16) == 10
    assert time_at(times, 16, 4) == 40
    assert time_at(times, 1, 4) == 40
    assert best_lanes(times) == (1, 8, 8, 16)
    assert best_lanes({1: 17.0, 8: 12.0, 16: 10.0}) == (1, 1, 8, 16)
    assert batch_time(times, (1, 8, 8, 16), 16) == batch_time(times, (1, 8, 8, 16), 64) == 10
    assert batch_time(times, (1, 8, 8, 16), 17) == pytest.approx((160 + 40) / 17)
