"""When calls are made: properties of the schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble.load.schedule import arrival_times, draw_batch_sizes

KINDS = st.sampled_from(["poisson", "constant"])


@settings(max_examples=30)
@given(
    kind=KINDS,
    rate=st.floats(0.5, 300),
    seconds=st.floats(0.5, 3),
    ramp_share=st.just(0.0) | st.floats(0.01, 1),
    seed=st.integers(0, 1 << 32),
)
def test_arrivals_are_sorted_and_counted_and_repeat(kind: str, rate: float, seconds: float, ramp_share: float, seed: int) -> None:
    ramp = ramp_share * seconds
    times, again = (arrival_times(kind, rate, seconds, ramp, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(times, again)
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < seconds))
    # By integration of the rate, without the inverse that the schedule uses.
    instants = np.linspace(0, seconds, 2001)
    intensity = rate * (np.minimum(instants / ramp, 1) if ramp > 0 else np.ones_like(instants))
    expected = float(((intensity[1:] + intensity[:-1]) / 2).sum() * (instants[1] - instants[0]))
    if kind == "constant":
        assert abs(len(times) - expected) <= 1.01
    else:
        assert abs(len(times) - expected) <= 6 * np.sqrt(expected) + 3  # 6 sigma


def test_constant_arrivals_have_equal_intervals_and_a_ramp_rises_linearly() -> None:
    times = arrival_times("constant", 50, 2.0, 0.0, np.random.default_rng(0))
    assert np.allclose(times, np.arange(100) / 50)
    ramp = arrival_times("constant", 1000, 3.0, 2.0, np.random.default_rng(0))
    counts, _ = np.histogram(ramp, np.arange(0, 3.5, 0.5))
    assert counts.tolist() == pytest.approx([62.5, 187.5, 312.5, 437.5, 500, 500], abs=1)


def test_poisson_intervals_are_exponential() -> None:
    intervals = np.diff(arrival_times("poisson", 1000, 20.0, 0.0, np.random.default_rng(3)))
    assert intervals.mean() == pytest.approx(1e-3, rel=0.03)
    assert intervals.std() == pytest.approx(1e-3, rel=0.05)
    assert np.quantile(intervals, 0.99) == pytest.approx(1e-3 * np.log(100), rel=0.1)


@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 32), share=st.floats(0.05, 0.95))
def test_batch_sizes_have_their_shares(seed: int, share: float) -> None:
    drawn = draw_batch_sizes(((1, share), (16, 1 - share)), 4000, np.random.default_rng(seed))
    assert set(np.unique(drawn)) <= {1, 16}
    assert np.mean(drawn == 1) == pytest.approx(share, abs=6 * 0.5 / np.sqrt(4000))
