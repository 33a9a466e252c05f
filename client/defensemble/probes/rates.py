"""The rates of a target, from the images that it classifies correctly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results.intervals import Rate, rate
from ..results.statistics import mcnemar

MAX_TARGETS_IN_PAIRS = 10
"""Of more targets, only the pairs with the first one are compared: 45 tests per condition are enough."""


@dataclass(frozen=True)
class ConditionRates:
    """The rates of one target under one condition; None where they were not measured, or do not exist.

    Attributes:
        name: Name of the condition.
        accuracy: Over all images.
        defense_rate: Over the images that this target classifies correctly when clean.
        defense_rate_source_fooled: Over those of them that the source of transferred examples misclassifies; None without a source.
        accuracy_on_common: Over the images that all targets classify correctly when clean; None if a target has no clean accuracy.

    Example:
        >>> [rates.defense_rate for rates in outcome.rates(outcome.targets[0])]
    """

    name: str
    accuracy: Rate | None
    defense_rate: Rate | None
    defense_rate_source_fooled: Rate | None
    accuracy_on_common: Rate | None

    def json(self) -> dict[str, Any]:
        """Return the rates as JSON."""
        return asdict(self)


def condition_rates(
    name: str,
    correct: NDArray[np.bool_] | None,
    clean: NDArray[np.bool_] | None,
    is_source_fooled: NDArray[np.bool_] | None,
    common: NDArray[np.bool_] | None,
) -> ConditionRates:
    """Return the rates under one condition.

    Args:
        name: Name of the condition.
        correct: bool (n,): images that are classified correctly under the condition; None if this was not measured.
        clean: The same for the clean images.
        is_source_fooled: Images that the source of transferred examples misclassifies; None without a source.
        common: Images that all targets classify correctly when clean; None if this is not known.
    """
    if correct is None or clean is None:
        return ConditionRates(name, None, None, None, None)
    return ConditionRates(
        name,
        accuracy=rate(correct),
        defense_rate=rate(correct[clean]),
        defense_rate_source_fooled=None if is_source_fooled is None else rate(correct[clean & is_source_fooled]),
        accuracy_on_common=None if common is None else rate(correct[common]),
    )


@dataclass(frozen=True)
class PairTest:
    """McNemar's exact test of two targets on all images: whether they are correct equally often. p-values are not adjusted.

    Attributes:
        a: Name of the first target.
        b: Name of the second target.
        condition: Name of the condition.
        only_a: Images that only the first classifies correctly.
        only_b: Images that only the second classifies correctly.
        n: Number of images.
        p: Two-sided p-value.

    Example:
        >>> [test for test in outcome.pair_tests() if test.p < 0.05]
    """

    a: str
    b: str
    condition: str
    only_a: int
    only_b: int
    n: int
    p: float

    def json(self) -> dict[str, Any]:
        """Return the test as JSON."""
        return asdict(self)


def pair_tests(correct: Mapping[str, Mapping[str, NDArray[np.bool_]]], conditions: list[str]) -> list[PairTest]:
    """Return the tests of all pairs of targets, or of those with the first target if there are more than `MAX_TARGETS_IN_PAIRS`.

    Args:
        correct: bool (n,) by the name of the target and of the condition, where it was measured.
        conditions: The conditions, in order.
    """
    names = list(correct)
    pairs = [(names[0], name) for name in names[1:]] if len(names) > MAX_TARGETS_IN_PAIRS else list(combinations(names, 2))
    return [
        pair_test(a, b, condition, correct[a][condition], correct[b][condition])
        for a, b in pairs
        for condition in conditions
        if condition in correct[a] and condition in correct[b]
    ]


def pair_test(a: str, b: str, condition: str, correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> PairTest:
    """Return the test of one pair on the same images.

    Args:
        a: Name of the first target.
        b: Name of the second target.
        condition: Name of the condition.
        correct_a: bool (n,): images that the first classifies correctly.
        correct_b: The same for the second.
    """
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    return PairTest(a, b, condition, only_a, only_b, len(correct_a), mcnemar(only_a, only_b))
