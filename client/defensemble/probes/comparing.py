"""Compare two outcomes: the rates of the same targets, or of two named ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..results.intervals import Rate
from ..results.statistics import difference_interval
from .base import CLEAN
from .outcome import ProbeOutcome, TargetOutcome, plain_json, same_json
from .rates import PairTest, pair_test
from .setting_text import different_keys

SCHEMA = "defensemble.probe-comparison/1"
RATES = ("accuracy", "defense_rate", "defense_rate_source_fooled", "accuracy_on_common")

Positions = NDArray[np.intp]


@dataclass(frozen=True)
class RateDifference:
    """One rate in both outcomes.

    Attributes:
        condition: Name of the condition.
        name: One of `RATES`.
        a: The rate in the first outcome; None if it was not measured.
        b: The rate in the second outcome.
        difference: `b` - `a`; None if one of them has no value.
        low: Lower bound of the difference's 95 % interval (Newcombe); None unless the outcomes have different images.
        high: Upper bound.
        test: McNemar's exact test of the accuracy on the images that both outcomes have; None for other rates, and without such images.

    Example:
        >>> [one.difference for one in compare(a, b).targets[0].rates]
    """

    condition: str
    name: str
    a: Rate | None
    b: Rate | None
    difference: float | None
    low: float | None
    high: float | None
    test: PairTest | None


@dataclass(frozen=True)
class TargetComparison:
    """A target of the first outcome and one of the second.

    Attributes:
        a: Name in the first outcome.
        b: Name in the second outcome.
        identity: Keys of the identity that differ, such as the digest of the configuration.
        rates: The rates, clean first, of the conditions that both outcomes have.

    Example:
        >>> compare(a, b).targets[0].rates[0].test.p
    """

    a: str
    b: str
    identity: tuple[str, ...]
    rates: tuple[RateDifference, ...]


@dataclass(frozen=True)
class Comparison:
    """Two outcomes, compared.

    Attributes:
        settings: What differs between the runs: (key, value in the first, value in the second).
        n_same: Number of images that both outcomes have, at the same row.
        notes: What a reader must know, one sentence each.
        targets: The targets.

    Example:
        >>> compare(a, b).settings
    """

    settings: tuple[tuple[str, Any, Any], ...]
    n_same: int
    notes: tuple[str, ...]
    targets: tuple[TargetComparison, ...]

    def json(self) -> dict[str, Any]:
        """Return the comparison as JSON, with a `schema` field."""
        values = {
            "schema": SCHEMA,
            "interval": "Wilson, 95 %; of differences: Newcombe, 95 %",
            "test": "McNemar, exact, two-sided, not adjusted",
            "settings": [{"key": key, "a": a, "b": b} for key, a, b in self.settings],
            "n_same": self.n_same,
            "notes": list(self.notes),
            "targets": [asdict(one) for one in self.targets],
        }
        return plain_json(values)


def compare(a: ProbeOutcome, b: ProbeOutcome, pairs: Sequence[tuple[str, str]] = ()) -> Comparison:
    """Compare the targets of two outcomes.

    Where both have the same images, at the same row and with the same digest, their accuracy is compared by McNemar's test. Where they have
    none in common, the differences have intervals.

    Args:
        a: The first outcome.
        b: The second outcome.
        pairs: (target of `a`, target of `b`); none: all names that both have.

    Raises:
        InputError: There is no such target, or no name that both have.
    """
    pairs = list(pairs) or [(target.name, target.name) for target in a.targets if any(other.name == target.name for other in b.targets)]
    if not pairs:
        raise InputError(
            f"the results have no target in common: {_names(a)} and {_names(b)}. Name one of each, such as "
            f"{a.targets[0].name if a.targets else 'NAME'}={b.targets[0].name if b.targets else 'NAME'}"
        )
    same = _same_images(a, b)
    shared = [condition.name for condition in a.conditions if any(condition.name == other.name for other in b.conditions)]
    return Comparison(
        _different_settings(a, b),
        len(same[0]),
        tuple(_notes(a, b, len(same[0]), shared)),
        tuple(
            _compare_targets((a, _find(a, first, "first")), (b, _find(b, second, "second")), [CLEAN, *shared], same)
            for first, second in pairs
        ),
    )


def _compare_targets(
    in_a: tuple[ProbeOutcome, TargetOutcome],
    in_b: tuple[ProbeOutcome, TargetOutcome],
    conditions: Sequence[str],
    same: tuple[Positions, Positions],
) -> TargetComparison:
    (a, first), (b, second) = in_a, in_b
    rates_a, rates_b = _rates(a, first), _rates(b, second)
    rates = []
    for condition in conditions:
        correct_a, correct_b = a.correct(first, condition), b.correct(second, condition)
        test = None
        if correct_a is not None and correct_b is not None and len(same[0]):
            test = pair_test(first.name, second.name, condition, correct_a[same[0]], correct_b[same[1]])
        for name in RATES:
            one, other = rates_a.get((condition, name)), rates_b.get((condition, name))
            if one is not None or other is not None:
                bounds = None if one is None or other is None or len(same[0]) else difference_interval(one, other)
                low, high = bounds or (None, None)
                rates.append(
                    RateDifference(condition, name, one, other, _difference(one, other), low, high, test if name == "accuracy" else None)
                )
    return TargetComparison(first.name, second.name, tuple(different_keys(first.identity, second.identity)), tuple(rates))


def _difference(a: Rate | None, b: Rate | None) -> float | None:
    return None if a is None or b is None or a.value is None or b.value is None else b.value - a.value


def _rates(outcome: ProbeOutcome, target: TargetOutcome) -> Mapping[tuple[str, str], Rate | None]:
    return {
        (CLEAN, "accuracy"): outcome.clean_rate(target),
        **{(rates.name, name): getattr(rates, name) for rates in outcome.rates(target) for name in RATES},
    }


def _same_images(a: ProbeOutcome, b: ProbeOutcome) -> tuple[Positions, Positions]:
    """Return the positions in both outcomes of the images with the same row and digest."""
    _, in_a, in_b = np.intersect1d(a.rows, b.rows, return_indices=True)
    is_same = a.image_digests[in_a] == b.image_digests[in_b]
    return in_a[is_same], in_b[is_same]


def _different_settings(a: ProbeOutcome, b: ProbeOutcome) -> tuple[tuple[str, Any, Any], ...]:
    values = [
        *((name, getattr(a, name), getattr(b, name)) for name in ("probe", "input", "answers", "norm", "budget", "seed", "shard")),
        *((f"settings.{key}", a.settings.get(key), b.settings.get(key)) for key in {**a.settings, **b.settings}),
        *((f"data.{key}", a.data.get(key), b.data.get(key)) for key in {**a.data, **b.data}),
        ("data.n", len(a.rows), len(b.rows)),
        ("class_names", a.class_names, b.class_names),
    ]
    return tuple((key, one, other) for key, one, other in values if not same_json(one, other))


def _notes(a: ProbeOutcome, b: ProbeOutcome, n_same: int, shared: Sequence[str]) -> list[str]:
    notes = []
    if n_same == 0:
        notes.append("The results have no image in common: the intervals of the differences treat them as independent samples.")
    elif n_same < max(len(a.rows), len(b.rows)):
        notes.append(
            f"The results have {n_same:,} images in common, of {len(a.rows):,} and {len(b.rows):,}: the tests use these, the rates use all."
        )
    if not same_json(a.class_names, b.class_names):
        notes.append("The classes differ: the rates are of different tasks.")
    for place, outcome in (("first", a), ("second", b)):
        if only := [condition.name for condition in outcome.conditions if condition.name not in shared]:
            notes.append(f"Only the {place} result has {', '.join(only)}.")
        if failed := [target.name for target in outcome.targets if target.failure is not None]:
            notes.append(f"In the {place} result, {', '.join(failed)} failed.")
    return notes


def _find(outcome: ProbeOutcome, name: str, place: str) -> TargetOutcome:
    for target in outcome.targets:
        if target.name == name:
            return target
    raise InputError(f"the {place} result has no target {name!r:.80}; it has {_names(outcome)}")


def _names(outcome: ProbeOutcome) -> str:
    return ", ".join(target.name for target in outcome.targets) or "none"
