"""The figures of a result: every rate, count and statistic that its JSON holds, in one long list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..probes.adaptive import Adaptive
from ..probes.base import CLEAN, NOISE
from ..probes.comparing import RATES
from ..probes.outcome import QueryCounts
from ..probes.suite import WORST_CASE
from ..probes.uncertainty import MEASURES
from .model import Figure, Result

QUERY_COUNTS = tuple(count.name for count in fields(QueryCounts))
MOST_CURVES = 4
"""Groups of conditions that get a curve each. Of more, such as the 15 corruptions, the means are shown."""


def condition_groups(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the conditions by group, such as the severities of each corruption, if there are too many groups for a curve of each.

    The baseline of random noise is no such group.

    Args:
        values: The result as JSON.
    """
    groups: dict[str, list[str]] = {}
    for condition in values["conditions"]:
        groups.setdefault(condition["group"], []).append(condition["name"])
    several = {group: members for group, members in groups.items() if len(members) > 1 and group != NOISE}
    return several if len(several) > MOST_CURVES else {}


class ResultFigures:
    """The figures of one result, by target, condition and quantity.

    Example:
        >>> ResultFigures(result).get("alpha", "sigma 8", "accuracy").value
    """

    def __init__(self, result: Result) -> None:
        self._result = result
        self._probe = str(result.values["name"])
        self.all: list[Figure] = list(self._figures())
        self._index = {(figure.target, figure.condition, figure.quantity, figure.compared_with): figure for figure in self.all}

    def get(self, target: str, condition: str, quantity: str, compared_with: str = "") -> Figure:
        """Return a figure; one without a value if the result does not have it.

        Args:
            target: Name of the target.
            condition: Name of the condition; empty for a figure without one.
            quantity: What was measured.
            compared_with: The second target of a paired test.
        """
        key = (target, condition, quantity, compared_with)
        return self._index.get(key) or Figure(self._result.path, self._probe, target, "", condition, quantity, None)

    def has(self, quantity: str, target: str | None = None) -> bool:
        """Return whether there is a value of a quantity.

        Args:
            quantity: What was measured.
            target: Name of the target; None: any.
        """
        return any(figure.quantity == quantity and figure.value is not None and target in (None, figure.target) for figure in self.all)

    def adaptive_summary(self, target: str) -> dict[str, Any]:
        """Return the verdict on a target under an adaptive attack; {} for other probes, and if it was not measured.

        Args:
            target: Name of the target.
        """
        outcome = self._result.outcome
        if outcome.probe != Adaptive.name:
            return {}
        predicted = next(one.predicted for one in outcome.targets if one.name == target)
        return dict(Adaptive.conclude(Adaptive.summary({}, outcome.rows, outcome.labels, predicted), outcome.checks))

    def _figures(self) -> Iterator[Figure]:
        for target in self._result.values["targets"]:
            yield from self._figures_of_target(target)
            yield from self._adaptive(target)
            for group, members in condition_groups(self._result.values).items():
                yield self._mean(target, group, members)
        for test in self._result.values["comparisons"]:
            for quantity, value in (("only_a", test["only_a"]), ("only_b", test["only_b"]), ("mcnemar_p", test["p"])):
                names = (self._result.path, self._probe, test["a"], "", test["condition"])
                yield Figure(*names, quantity, value, n=test["n"], compared_with=test["b"])

    def _adaptive(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        """Yield the rates of a target in the worst case per image over the conditions of an adaptive attack."""
        summary = self.adaptive_summary(target["name"])
        for quantity, values in (("accuracy", "worst_case"), ("defense_rate", "defense_rate")):
            rate = summary.get(values)
            if rate is not None:
                yield Figure(self._result.path, self._probe, target["name"], target["role"], WORST_CASE, quantity, **rate)

    def _mean(self, target: Mapping[str, Any], group: str, members: Sequence[str]) -> Figure:
        """Return the mean accuracy over the conditions of a group; without a value if one of them was not measured."""
        rates = [rate for condition in target["conditions"] if condition["name"] in members and (rate := condition["accuracy"]) is not None]
        names = (self._result.path, self._probe, target["name"], target["role"], group)
        if len(rates) < len(members) or not all(rate["n"] for rate in rates):
            return Figure(*names, "mean_accuracy", None)
        return Figure(*names, "mean_accuracy", sum(rate["value"] for rate in rates) / len(rates), n=rates[0]["n"])

    def _figures_of_target(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        def figure(condition: str, quantity: str, value: float | None, **more: Any) -> Figure:
            return Figure(self._result.path, self._probe, target["name"], target["role"], condition, quantity, value, **more)

        def rate(condition: str, quantity: str, values: Mapping[str, Any] | None) -> Figure:
            if values is None:
                return figure(condition, quantity, None)
            return figure(condition, quantity, **{key: values[key] for key in ("value", "low", "high", "successes", "n")})

        yield rate(CLEAN, "accuracy", target["clean"])
        yield figure("", "skipped", target["skipped"])
        for condition in target["conditions"]:
            for quantity in RATES:
                yield rate(condition["name"], quantity, condition[quantity])
        if (attack := target["attack"]) is not None:
            success, score = attack["success"], attack["s_m"] or {"value": None, "low": None, "high": None, "n": None}
            yield figure("", "attacked", success["n"])
            yield rate("", "attack_success", success)
            yield figure("", "s_m", score["value"], **{key: score[key] for key in ("low", "high", "n")})
            yield figure("", "median_queries", attack["median_queries"], n=success["successes"])
            yield figure("", "censored", attack["censored"], n=success["n"])
        for quantity in QUERY_COUNTS:
            yield figure("", quantity, target["queries"][quantity])
        for condition, measures in target["uncertainty"].items():
            for measure in MEASURES:
                area = (measures.get(measure) or {}).get("auroc")
                if area is not None:
                    more = {"low": area["low"], "high": area["high"], "n": area["n_clean"] + area["n_perturbed"]}
                    yield figure(condition, f"auroc_{measure}", area["value"], **more)
