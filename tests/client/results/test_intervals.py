from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from defensemble import InputError, rate, wilson


@given(st.data(), st.integers(1, 10_000), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy(data: st.DataObject, n: int, confidence: float) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    low, high = wilson(successes, n, confidence)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 0.0), (1, 2, 95)])
def test_wilson_rejects_invalid_arguments(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(InputError, match="got"):
        wilson(successes, n, confidence)


def test_a_rate_counts_and_has_no_value_without_images() -> None:
    some = rate(np.array([True, False, True, True]))
    assert (some.value, some.successes, some.n) == (0.75, 3, 4)
    assert (some.low, some.high) == wilson(3, 4)
    none = rate(np.zeros(0, np.bool_))
    assert none.json() == {"value": None, "successes": 0, "n": 0, "low": None, "high": None}
