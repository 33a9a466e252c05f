"""The Square attack, which changes random squares of an image and keeps what lowers the margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from .base import Condition, Norm, ProbeImage, Query, QueryAttack, norm_condition

Array = NDArray[np.float64]
_LARGEST = {"linf": 1.0, "l2": 1e4}
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations, of 10,000, after which the share of the image that a square covers is halved."""


@dataclass(frozen=True)
class Square(QueryAttack):
    """The Square attack of Andriushchenko et al., with the margin of probabilities as its loss. It stops at the first success.

    Attributes:
        norm: Norm of the perturbation.
        epsilon: Largest norm of the perturbation; None for 8/255 (linf) and 0.5 (l2).
        queries: Most queries of an image. The squares shrink on a schedule of this length.
        p_init: Share of the image that the first squares cover.

    Example:
        >>> Square(norm="linf", epsilon=8 / 255, queries=2500, seed=1)
    """

    norm: Norm = "linf"
    epsilon: float | None = None
    queries: int = 5000
    p_init: float = 0.8

    name: ClassVar[str] = "square"
    paper: ClassVar[str | None] = "arXiv:1912.00049"
    answer = "margin"

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "linf"):
            raise InputError(f"norm must be l2 or linf; got {self.norm!r}")
        if not 0 <= self.bound <= _LARGEST[self.norm]:
            raise InputError(
                f"epsilon must be from 0 to {_LARGEST[self.norm]:g} for {self.norm}, since images are in [0, 1], such as "
                f"{'8/255' if self.norm == 'linf' else '0.5'}; got {self.epsilon}"
            )
        if self.queries < 1 or not 0 < self.p_init <= 1:
            raise InputError(f"queries must be at least 1 and p_init in (0, 1]; got {self.queries} and {self.p_init}")

    @property
    def bound(self) -> float:
        """The largest norm of the perturbation."""
        if self.epsilon is not None:
            return self.epsilon
        return 8 / 255 if self.norm == "linf" else 0.5

    @property
    def title(self) -> str:
        """The name of the attack and the norm."""
        return f"Square attack, {self.norm}"

    @property
    def threat_model(self) -> str:
        """What the attacker knows and may do."""
        bound = f"{255 * self.bound:.4g}/255" if self.norm == "linf" else f"{self.bound:.4g}"
        return (
            "Black box, probabilities: the attacker sends images and sees the probabilities, without weights, and searches for a "
            f"perturbation of {self.norm} norm at most {bound} within {self.queries} queries."
        )

    def conditions(self) -> Sequence[Condition]:
        """Return the one condition: the perturbation is at most epsilon."""
        return [norm_condition(self.norm, self.bound)]

    def most_queries(self, budget: int | None) -> int:
        """Return `queries`, or the budget if that is smaller."""
        return self.queries if budget is None else min(budget, self.queries)

    def attack(self, image: ProbeImage, query: Query, seed: int) -> NDArray[np.float32] | None:
        """Search until the image is misclassified or `queries` are spent. See `QueryAttack.attack`."""
        if self.bound == 0:
            return None
        rng = np.random.default_rng(seed)
        search: _Search = (_Linf if self.norm == "linf" else _L2)(image.pixels, self.bound, rng)
        best = search.start()
        margin = float(query(best[None])[0])
        for iteration in range(self.queries - 1):
            if margin < 0:
                break
            candidate = search.step(best, self._share(iteration))
            candidate_margin = float(query(candidate[None])[0])
            if candidate_margin < margin:
                best, margin = candidate, candidate_margin
        return best if margin < 0 else None

    def _share(self, iteration: int) -> float:
        """Return the share of the image that a square covers."""
        position = int(iteration / self.queries * 10_000)
        return float(self.p_init / 2 ** sum(position > start for start in _HALVINGS))


class _Search:
    """Proposes images within the bound around one image."""

    def __init__(self, pixels: NDArray[np.float32], epsilon: float, rng: np.random.Generator) -> None:
        self.pixels = pixels
        self.epsilon = epsilon
        self.rng = rng
        self.channels, self.height, self.width = pixels.shape

    def start(self) -> NDArray[np.float32]:
        raise NotImplementedError

    def step(self, best: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        raise NotImplementedError

    def signs(self, *shape: int) -> Array:
        return self.rng.choice(np.array([-1.0, 1.0]), shape)

    def side(self, share: float) -> int:
        return round(math.sqrt(share * self.height * self.width))

    def window(self, side: int) -> tuple[slice, slice, slice]:
        top = int(self.rng.integers(0, self.height - side + 1))
        left = int(self.rng.integers(0, self.width - side + 1))
        return (slice(None), slice(top, top + side), slice(left, left + side))


class _Linf(_Search):
    def __init__(self, pixels: NDArray[np.float32], epsilon: float, rng: np.random.Generator) -> None:
        super().__init__(pixels, epsilon, rng)
        # The float32 numbers nearest to +-epsilon whose distance in float64 does not exceed it.
        original = pixels.astype(np.float64)
        low, high = (original - epsilon).astype(np.float32), (original + epsilon).astype(np.float32)
        low = np.where(original - low > epsilon, np.nextafter(low, np.float32(1)), low)
        high = np.where(high - original > epsilon, np.nextafter(high, np.float32(0)), high)
        self.low, self.high = np.clip(low, 0, 1), np.clip(high, 0, 1)

    def start(self) -> NDArray[np.float32]:
        """Vertical stripes."""
        return np.where(self.signs(self.channels, 1, self.width) > 0, self.high, self.low)

    def step(self, best: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        side = min(max(self.side(share), 1), self.height, self.width)
        for _ in range(10):  # a square that changes nothing would cost a query
            candidate: NDArray[np.float32] = best.copy()
            window = self.window(side)
            candidate[window] = np.where(self.signs(self.channels, 1, 1) > 0, self.high[window], self.low[window])
            if not np.array_equal(candidate, best):
                break
        return candidate


class _L2(_Search):
    def start(self) -> NDArray[np.float32]:
        """A grid of about 5 x 5 bumps."""
        side = max(min(self.height, self.width) // 5, 1)
        delta = np.zeros(self.pixels.shape)
        for top in range(self.height % side // 2, self.height - side + 1, side):
            for left in range(self.width % side // 2, self.width - side + 1, side):
                delta[:, top : top + side, left : left + side] = self._bump(side) * self.signs(self.channels, 1, 1)
        return self._scaled(delta)

    def step(self, best: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        """Move the mass of one window, and what the norm leaves, to another window."""
        side = max(self.side(share), 3)
        side = min(side + (side + 1) % 2, self.height, self.width)
        delta = best.astype(np.float64) - self.pixels
        target, source = self.window(side), self.window(side)
        both = np.zeros(delta.shape[1:], bool)
        both[target[1:]] = both[source[1:]] = True
        unused = max(self.epsilon**2 - float(np.sum(delta**2)), 0.0) / self.channels
        mass = np.sqrt(unused + np.sum(delta**2 * both, axis=(1, 2), keepdims=True))
        new = self._bump(side) * self.signs(self.channels, 1, 1) + _normalised(delta[target], (1, 2))
        delta[source] = 0
        delta[target] = _normalised(new, (1, 2)) * mass
        return self._scaled(delta)

    def _bump(self, side: int) -> Array:
        bump = _bump(side)
        return bump.T if self.rng.integers(2) else bump

    def _scaled(self, delta: Array) -> NDArray[np.float32]:
        # Rounding the sum to float32 adds at most 2**-25 a value.
        norm = self.epsilon - 2**-24 * math.sqrt(delta.size)
        delta = _normalised(delta, (0, 1, 2)) * max(norm, 0.0)
        image: NDArray[np.float32] = np.clip(self.pixels + delta, 0, 1).astype(np.float32)
        return image


def _normalised(values: Array, axes: tuple[int, ...]) -> Array:
    result: Array = values / (1e-12 + np.sqrt(np.sum(values**2, axis=axes, keepdims=True)))
    return result


@lru_cache(maxsize=128)
def _bump(side: int) -> NDArray[Any]:
    """Return two opposite bumps that fill a square, of norm 1."""
    upper = side // 2
    bump = np.concatenate([_half_bump(upper, side), -_half_bump(side - upper, side)])
    bump /= np.sqrt(np.sum(bump**2))
    bump.flags.writeable = False
    return bump


def _half_bump(height: int, width: int) -> Array:
    """Return rings around the centre of a rectangle that fall off by the square of their number, of norm 1."""
    bump = np.zeros((height, width))
    rows, columns = height // 2 + 1, width // 2 + 1
    for ring in range(max(rows, columns)):
        top, left = rows - 1 - ring, columns - 1 - ring
        bump[max(top, 0) : top + 2 * ring + 1, max(left, 0) : left + 2 * ring + 1] += 1 / (ring + 1) ** 2
    return bump / np.sqrt(np.sum(bump**2)) if bump.size else bump
