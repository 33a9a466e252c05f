"""Rates with their n and an interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion, without continuity correction; (low, high) in [0, 1].

    Raises:
        InputError: n is not positive, successes lie outside [0, n], or confidence outside (0, 1).

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"an interval needs n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be in (0, 1), such as 0.95, got {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is exact, and the formula has a rounding error.
    return (0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half))


@dataclass(frozen=True)
class Rate:
    """A share of n images, with its Wilson 95 % interval; value, low and high are None where n is 0."""

    value: float | None
    successes: int
    n: int
    low: float | None
    high: float | None

    def json(self) -> dict[str, float | int | None]:
        """As JSON."""
        return asdict(self)


def rate(hits: NDArray[np.bool_]) -> Rate:
    """The share of True among the entries."""
    n, successes = int(hits.size), int(np.count_nonzero(hits))
    if n == 0:
        return Rate(None, 0, 0, None, None)
    low, high = wilson(successes, n)
    return Rate(successes / n, successes, n, low, high)
