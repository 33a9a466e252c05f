"""What a query attack achieved: success, queries, distances and curves, from the distances and traces that were recorded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results.intervals import Rate, rate
from ..results.packed import pack
from ..results.statistics import Estimate, bootstrap_median

CURVE_POINTS = 200
"""At most so many points of a curve are stored; of more, evenly spaced ones."""
ARRAYS = ("is_attacked", "distance", "mean_square", "counted", "is_spent")
"""Names of the arrays of an `AttackOutcome`."""

Curve = list[tuple[float, float]]


def within(epsilon: float | None) -> float:
    """Return the largest measured norm that counts as within `epsilon`: a float32 image at exactly this norm is rounded away from it."""
    return math.inf if epsilon is None else epsilon * (1 + 1e-6) + 1e-7


@dataclass(frozen=True)
class AttackOutcome:
    """What a query attack found, for n images in order.

    Attributes:
        is_attacked: bool (n,): False for images that were skipped because they are misclassified without an attack.
        distance: float64 (n,): norm of the smallest adversarial perturbation that was found and verified; NaN if there is none.
        mean_square: float64 (n,): its mean squared value (1/N) * l2^2, as in the score S(M) of arXiv 1911.08432; NaN if there is none.
        counted: int64 (n,): queries of the attack, verification not included.
        is_spent: bool (n,): whether the attack asked for more queries than its budget, which ended it. Square ends by itself.
        traces: For each image, (queries, distance) at each improvement.

    Example:
        >>> np.median(attack.counted[attack.is_attacked & ~np.isnan(attack.distance)])
    """

    is_attacked: NDArray[np.bool_]
    distance: NDArray[np.float64]
    mean_square: NDArray[np.float64]
    counted: NDArray[np.int64]
    is_spent: NDArray[np.bool_]
    traces: list[list[tuple[int, float]]]

    def is_broken(self, epsilon: float | None) -> NDArray[np.bool_]:
        """Return bool (n,): whether an adversarial example was verified within the norm `epsilon`, or at any if that is None."""
        return np.asarray(self.distance <= within(epsilon))  # False for NaN

    def queries_to_success(self, epsilon: float | None) -> NDArray[np.int64]:
        """Return int64 (k,): for each broken image in order, the queries until its first adversarial example within `epsilon`.

        The trace has the distances of unverified examples. If none of them is within `epsilon`, as the verified one is, all queries count.
        """
        limit = within(epsilon)
        return np.array(
            [
                next((queries for queries, distance in self.traces[index] if distance <= limit), int(self.counted[index]))
                for index in np.flatnonzero(self.is_attacked & self.is_broken(epsilon))
            ],
            np.int64,
        )

    def json(self) -> dict[str, Any]:
        """Return the arrays as JSON, packed: the traces one after another, with their lengths."""
        points = [point for trace in self.traces for point in trace]
        return {
            **{name: pack(getattr(self, name)) for name in ARRAYS},
            "traces": {
                "lengths": pack(np.array([len(trace) for trace in self.traces], np.int64)),
                "queries": pack(np.array([queries for queries, _ in points], np.int64)),
                "distance": pack(np.array([distance for _, distance in points], np.float64)),
            },
        }


@dataclass(frozen=True)
class AttackRates:
    """The success of a query attack on one target.

    Attributes:
        epsilon: Largest norm that counts as a success: that of the largest condition; None for any.
        success: Share of the attacked images with a verified adversarial example within `epsilon`.
        s_m: S(M): median over the attacked images of (1/N) * l2^2 of the closest adversarial example, at any distance. Images without
            one count as infinite: the paper, whose attack starts from adversarial images, has none. None without attacked images.
        n_found: Number of attacked images with an adversarial example, at any distance.
        median_queries: Median of the queries until the first success, over the successes; None without any.
        censored: Attacked images without a success whose queries reached the budget: with a larger one, the attack might succeed.
        queries_curve: (queries, share of the attacked images with a success by then).
        distance_curve: (norm, share of all images that are classified correctly under an attack of at most this norm).

    Example:
        >>> attack_rates(target.attack, clean_correct, epsilon=8 / 255, seed=0).success.value
    """

    epsilon: float | None
    success: Rate
    s_m: Estimate | None
    n_found: int
    median_queries: float | None
    censored: int
    queries_curve: Curve = field(repr=False)
    distance_curve: Curve = field(repr=False)

    def json(self) -> dict[str, Any]:
        """Return the values as JSON. A bound of S(M) that is infinite is None."""
        return {**asdict(self), "s_m": None if self.s_m is None else self.s_m.json()}


def attack_rates(
    attack: AttackOutcome, clean: NDArray[np.bool_], epsilon: float | None, seed: int, budget: float = math.inf
) -> AttackRates:
    """Return the success of a query attack.

    Args:
        attack: What it found.
        clean: bool (n,): images that are classified correctly without an attack.
        epsilon: Largest norm that counts as a success; None for any.
        seed: Seed of the bootstrap.
        budget: Most queries of an image, by the run or by the attack itself.
    """
    attacked = attack.is_attacked
    broken = attack.is_broken(epsilon)
    queries = attack.queries_to_success(epsilon)
    mean_square = attack.mean_square[attacked]
    return AttackRates(
        epsilon,
        success=rate(broken[attacked]),
        s_m=bootstrap_median(np.where(np.isnan(mean_square), np.inf, mean_square), seed),
        n_found=int((attack.is_broken(None) & attacked).sum()),
        median_queries=float(np.median(queries)) if len(queries) else None,
        censored=int((attacked & ~broken & (attack.is_spent | (attack.counted >= budget))).sum()),
        queries_curve=_queries_curve(queries, attack.counted[attacked]),
        distance_curve=_distance_curve(attack.distance[clean], len(clean)),
    )


def _queries_curve(queries: NDArray[np.int64], counted: NDArray[np.int64]) -> Curve:
    if not len(counted):
        return []
    values, shares = _steps(queries, len(counted))
    curve = [(0.0, 0.0), *zip(values, shares, strict=True)]
    end = float(counted.max())
    return curve if curve[-1][0] >= end else [*curve, (end, curve[-1][1])]


def _distance_curve(distances: NDArray[np.float64], n: int) -> Curve:
    """Return the accuracy over n images, of which those with these distances are correct when clean."""
    if not n:
        return []
    values, shares = _steps(distances[~np.isnan(distances)], n)
    clean = len(distances) / n
    return [(0.0, clean), *((value, (len(distances) - round(share * n)) / n) for value, share in zip(values, shares, strict=True))]


def _steps(values: NDArray[np.int64] | NDArray[np.float64], n: int) -> tuple[list[float], list[float]]:
    """Return the different values, and the share of n that is at most each: at most `CURVE_POINTS`, the last included."""
    different, counts = np.unique(values, return_counts=True)
    kept = np.unique(np.linspace(0, len(different) - 1, min(len(different), CURVE_POINTS)).round().astype(np.int64))
    return different[kept].astype(np.float64).tolist(), (np.cumsum(counts)[kept] / n).tolist()
