"""When the calls of a step are made, and with how many images: drawn beforehand, from a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def arrival_times(kind: str, rate_per_s: float, seconds: float, ramp_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the times of the calls of an open loop, in seconds from the beginning, sorted and below `seconds`.

    Args:
        kind: `poisson` for a Poisson process, `constant` for constant intervals.
        rate_per_s: Calls per second.
        seconds: Length, the ramp included.
        ramp_s: Seconds at the beginning, at most all, in which the rate rises linearly from 0.
        rng: Source of the times of a Poisson process.
    """
    expected = rate_per_s * (seconds - ramp_s / 2)  # calls in the whole time
    if kind == "constant":
        counts = np.arange(np.ceil(expected), dtype=np.float64)
    else:
        counts = np.empty(0)
        while not len(counts) or counts[-1] < expected:
            missing = max(expected - (counts[-1] if len(counts) else 0.0), 1.0)
            drawn = np.cumsum(rng.exponential(size=int(missing + 4 * missing**0.5) + 1))
            counts = np.concatenate([counts, drawn + (counts[-1] if len(counts) else 0.0)])
    # The inverse of the expected number of calls until a time: rate * t^2 / (2 * ramp), after the ramp rate * (t - ramp / 2).
    times = np.where(counts < rate_per_s * ramp_s / 2, np.sqrt(2 * ramp_s * counts / rate_per_s), counts / rate_per_s + ramp_s / 2)
    return times[times < seconds]


def draw_batch_sizes(shares: Sequence[tuple[int, float]], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the number of images of each of `count` calls.

    Args:
        shares: Sizes with their shares of the calls, which sum to 1.
        count: Number of calls.
        rng: Source of the order.
    """
    sizes, weights = zip(*shares, strict=True)
    drawn: NDArray[np.int64] = rng.choice(np.array(sizes, np.int64), count, p=np.array(weights))
    return drawn
