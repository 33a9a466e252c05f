"""Statistics of probes: tests, intervals and curves, computed with numpy only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .intervals import Rate

_CHUNK = 1 << 20  # resampled values at a time: 8 MB
RESAMPLES = 2000
"""Bootstrap samples: the bounds of a 95 % interval are the 50th smallest and largest."""


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p-value of McNemar's exact test, two-sided: whether two classifiers are correct equally often on the same images.

    Under this hypothesis, `only_a` is binomial with n = only_a + only_b and probability 1/2.

    Args:
        only_a: Images that only the first classifies correctly.
        only_b: Images that only the second classifies correctly.

    Raises:
        InputError: A number is negative.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12 (1947).

    Example:
        >>> mcnemar(2, 10)
        0.0385...
    """
    if only_a < 0 or only_b < 0:
        raise InputError(f"counts must be 0 or more; got {only_a} and {only_b}")
    n, smaller = only_a + only_b, min(only_a, only_b)
    # The largest term of the tail, correctly rounded (0 below 1e-323), and the others by their ratio to it: C(n, i - 1) / C(n, i).
    largest = math.comb(n, smaller) / (1 << n)
    index = np.arange(smaller, 0, -1, dtype=np.float64)
    tail = largest * (1 + float(np.cumprod(index / (n - index + 1)).sum()))
    return min(1.0, 2 * tail)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, of n images. A number is infinite if it is unbounded.

    Example:
        >>> estimate = bootstrap_median(mean_squares, seed=0)
    """

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, float | int | None]:
        """Return the estimate as JSON, with None for infinite numbers."""
        return {key: value if math.isfinite(value) else None for key, value in asdict(self).items()}


def bootstrap_median(values: NDArray[np.float64], seed: int, resamples: int = RESAMPLES) -> Estimate | None:
    """Return the median with its 95 % percentile bootstrap interval; None without values.

    Args:
        values: (n,), which may be infinite, but not NaN.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.

    Raises:
        InputError: A value is NaN.

    Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
    """
    n = len(values)
    if np.isnan(values).any():
        raise InputError(f"{int(np.isnan(values).sum())} of {n} values are NaN; pass infinity for values that are beyond all others")
    if n == 0:
        return None
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // n)
    medians = np.sort(
        np.concatenate(
            [
                np.median(values[rng.integers(n, size=(min(at_once, resamples - start), n))], axis=1)
                for start in range(0, resamples, at_once)
            ]
        )
    )
    # Order statistics: between infinite values, nothing can be interpolated.
    low, high = medians[math.floor(0.025 * (resamples - 1))], medians[math.ceil(0.975 * (resamples - 1))]
    return Estimate(float(np.median(values)), float(low), float(high), n)


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC curve of a detector, with its 95 % interval.

    `low` and `high` are None where the variance cannot be estimated: fewer than two images on a side, or a perfect separation.

    Attributes:
        value: Probability that a perturbed image has a higher score than a clean one; equal scores count half.
        low: Lower bound.
        high: Upper bound.
        n_clean: Number of clean images.
        n_perturbed: Number of perturbed images.

    Example:
        >>> auroc(entropy["clean"], entropy["sigma 8"]).value
    """

    value: float
    low: float | None
    high: float | None
    n_clean: int
    n_perturbed: int

    def json(self) -> dict[str, float | int | None]:
        """Return the values as JSON."""
        return asdict(self)


def auroc(clean: NDArray[np.float64], perturbed: NDArray[np.float64]) -> Auroc | None:
    """Return the AUROC of a score that should be higher for perturbed images; None without images on one side.

    The interval is DeLong's, with the covariance of an image's clean and perturbed scores, which are not independent.

    Args:
        clean: Scores (n,) of the clean images; NaN where there is none.
        perturbed: Scores (n,) of the same images, perturbed; NaN where there is none.

    Sources: E. DeLong, D. DeLong, D. Clarke-Pearson, Biometrics 44 (1988); N. Obuchowski, Biometrics 53 (1997), for dependent scores.
    """
    has_clean, has_perturbed = ~np.isnan(clean), ~np.isnan(perturbed)
    n_clean, n_perturbed = int(has_clean.sum()), int(has_perturbed.sum())
    if not n_clean or not n_perturbed:
        return None
    # The share of the other side that each score wins against: the structural components. Their mean is the AUROC.
    wins = _share_below(perturbed[has_perturbed], clean[has_clean])
    losses = 1 - _share_below(clean[has_clean], perturbed[has_perturbed])
    value = float(wins.mean())
    if min(n_clean, n_perturbed) < 2:
        return Auroc(value, None, None, n_clean, n_perturbed)
    excess_perturbed, excess_clean = np.zeros(len(perturbed)), np.zeros(len(clean))
    excess_perturbed[has_perturbed], excess_clean[has_clean] = wins - value, losses - value
    n_images = int((has_clean | has_perturbed).sum())
    variance = float(
        (excess_perturbed**2).sum() / (n_perturbed * (n_perturbed - 1))
        + (excess_clean**2).sum() / (n_clean * (n_clean - 1))
        + 2 * n_images / (n_images - 1) * (excess_perturbed * excess_clean).sum() / (n_perturbed * n_clean)
    )
    if variance <= 0:
        return Auroc(value, None, None, n_clean, n_perturbed)
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Auroc(value, max(0.0, value - half), min(1.0, value + half), n_clean, n_perturbed)


def _share_below(scores: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each score, the share of the others that is lower; equal ones count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(below / (2 * len(others)))


def rejection_curve(uncertainty: NDArray[np.float64], correct: NDArray[np.bool_], points: int = 20) -> list[tuple[float, float]]:
    """Return (share rejected, accuracy of the rest), where the most uncertain images are rejected first.

    Of images with equal uncertainty, random ones are rejected: the curve has the expected accuracy.

    Args:
        uncertainty: (n,); images with NaN are left out.
        correct: bool (n,).
        points: Number of points, from nothing rejected on.
    """
    measured = ~np.isnan(uncertainty)
    values, groups = np.unique(uncertainty[measured], return_inverse=True)
    if not len(values):
        return []
    sizes = np.bincount(groups)
    hits = np.bincount(groups, weights=correct[measured])
    kept_ends, hit_ends = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([[0.0], np.cumsum(hits)])
    n = int(kept_ends[-1])
    kept = np.unique(n - np.arange(points) * n // points)[::-1]  # fewer points than asked for, for few images
    return list(zip(((n - kept) / n).tolist(), (np.interp(kept, kept_ends, hit_ends) / kept).tolist(), strict=True))


def difference_interval(a: Rate, b: Rate) -> tuple[float, float] | None:
    """Return the 95 % interval of `b` - `a`, the rates of two different sets of images; None if one has no images.

    Args:
        a: The first rate.
        b: The second rate.

    Source: R. Newcombe, Interval estimation for the difference between independent proportions, Statistics in Medicine 17 (1998),
    method 10.
    """
    if a.value is None or a.low is None or a.high is None or b.value is None or b.low is None or b.high is None:
        return None
    difference = b.value - a.value
    low = difference - math.hypot(b.value - b.low, a.high - a.value)
    high = difference + math.hypot(b.high - b.value, a.value - a.low)
    return max(-1.0, low), min(1.0, high)
