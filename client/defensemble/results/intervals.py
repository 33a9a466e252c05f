"""Rates with sample size and confidence interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion, without continuity correction: (low, high) in [0, 1].

    Args:
        successes: Number of successes, in [0, n].
        n: Number of trials, 1 or more.
        confidence: Confidence level in (0, 1).

    Raises:
        InputError: An argument is out of its range.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Example:
        >>> wilson(90, 100)
        (0.826..., 0.944...)
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"an interval needs n >= 1 and 0 <= successes <= n; got {successes} of {n}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1), such as 0.95; got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends, the exact bound is known, and the formula has a rounding error.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


@dataclass(frozen=True)
class Rate:
    """A fraction of n images, with its Wilson 95 % interval. `value`, `low` and `high` are None if n is 0.

    Example:
        >>> accuracy = rate(prediction.indices == labels)
        >>> f"{accuracy.value:.1%} ({accuracy.low:.1%} to {accuracy.high:.1%}, n = {accuracy.n})"
    """

    value: float | None
    successes: int
    n: int
    low: float | None
    high: float | None

    def json(self) -> dict[str, float | int | None]:
        """Return the rate as JSON."""
        return asdict(self)


def rate(hits: NDArray[np.bool_]) -> Rate:
    """Return the fraction of True entries.

    Example:
        >>> rate(prediction.indices == labels)
    """
    n, successes = int(hits.size), int(np.count_nonzero(hits))
    if n == 0:
        return Rate(None, 0, 0, None, None)
    low, high = wilson(successes, n)
    return Rate(successes / n, successes, n, low, high)
