"""The figures of a result: every rate, count and statistic that its JSON holds, in one long list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError
from ..probes.adaptive import Adaptive
from ..probes.base import CLEAN, NOISE
from ..probes.comparing import RATES
from ..probes.corruptions import Corruptions
from ..probes.folders import CUE_CONFLICT, Folders
from ..probes.outcome import QueryCounts
from ..probes.suite import WORST_CASE
from ..probes.uncertainty import MEASURES
from .model import Figure, Result

QUERY_COUNTS = tuple(count.name for count in fields(QueryCounts))
MEAN_ERROR = "mean_error"
SHAPE_BIAS = "shape_bias"
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

    @cached_property
    def folders(self) -> dict[str, tuple[str, ...]]:
        """The quantities of each folder of images, by the folder's name; {} for other probes.

        A name of a folder is its last part with the kind, or the whole path if that is not unique.
        """
        if self._result.outcome.probe != Folders.name:
            return {}
        # Which folders there are does not depend on a target.
        entries = self._folder_rates(self._result.outcome.labels)
        short = [Path(entry["name"]).name for entry in entries]
        names = [name if short.count(name) == 1 else entry["name"] for name, entry in zip(short, entries, strict=True)]
        kinds = {f"{name} ({entry['kind']})": entry for name, entry in zip(names, entries, strict=True)}
        if len(kinds) < len(entries):
            raise InputError(
                f"{self._result.path} is damaged: data.folders has a folder twice. Use an unchanged copy, or measure it again."
            )
        conflict = ("shape", "texture", "neither", SHAPE_BIAS)
        return {name: conflict if entry["kind"] == CUE_CONFLICT else ("accuracy",) for name, entry in kinds.items()}

    def _folder_rates(self, classes: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return the rates of each folder for the classes that were predicted."""
        outcome = self._result.outcome
        try:
            rates: list[dict[str, Any]] = Folders.summary(outcome.data, outcome.rows, outcome.labels, {CLEAN: classes})["folders"]
        except InputError as error:
            raise InputError(f"{self._result.path}: {error}") from error
        except OverflowError as error:
            raise InputError(f"{self._result.path} is damaged, data.folders: {error}. Use an unchanged copy.") from error
        return rates

    def adaptive_summary(self, target: str) -> dict[str, Any]:
        """Return the verdict on a target under an adaptive attack; {} for other probes, and if it was not measured.

        Args:
            target: Name of the target.
        """
        outcome = self._result.outcome
        if outcome.probe != Adaptive.name:
            return {}
        predicted = self._predicted(target)
        return dict(Adaptive.conclude(Adaptive.summary({}, outcome.rows, outcome.labels, predicted), outcome.checks))

    def _figures(self) -> Iterator[Figure]:
        for target in self._result.values["targets"]:
            if self.folders:  # their pooled accuracy means nothing: in a conflict, correct is the shape's class
                yield from self._folder_figures(target)
                continue
            yield from self._figures_of_target(target)
            yield from self._adaptive(target)
            yield from self._mean_errors(target)
            for group, members in condition_groups(self._result.values).items():
                yield self._mean(target, group, members)
        for test in [] if self.folders else self._result.values["comparisons"]:
            for quantity, value in (("only_a", test["only_a"]), ("only_b", test["only_b"]), ("mcnemar_p", test["p"])):
                names = (self._result.path, self._probe, test["a"], "", test["condition"])
                yield Figure(*names, quantity, value, n=test["n"], compared_with=test["b"])

    def _adaptive(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        """Yield the rates of a target in the worst case per image over the conditions of an adaptive attack."""
        summary = self.adaptive_summary(target["name"])
        for quantity, values in (("accuracy", "worst_case"), ("defense_rate", "defense_rate")):
            rate = summary.get(values)
            if rate is not None:
                yield Figure(*self._names(target), WORST_CASE, quantity, **rate)

    def _folder_figures(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        names = self._names(target)
        predicted = self._predicted(target["name"]).get(CLEAN)
        entries = [{}] * len(self.folders) if predicted is None else self._folder_rates(predicted)
        for (folder, quantities), entry in zip(self.folders.items(), entries, strict=True):
            for quantity in quantities:
                yield Figure(*names, folder, quantity, **entry.get(quantity, {"value": None}))
        yield from self._query_figures(target)

    def _mean_errors(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        """Yield the mean errors of a target under corruptions: of all, without a condition, and of each."""
        outcome, predicted = self._result.outcome, self._predicted(target["name"])
        if outcome.probe != Corruptions.name or not len(outcome.rows):
            return
        names = self._names(target)
        if any(condition.name not in predicted for condition in outcome.conditions):
            yield Figure(*names, "", MEAN_ERROR, None)
            return
        summary = Corruptions.summary({}, outcome.rows, outcome.labels, predicted)
        for condition, values in {"": summary[MEAN_ERROR], **summary["mean_error_by_corruption"]}.items() if summary else ():
            yield Figure(*names, condition, MEAN_ERROR, **values)

    def _names(self, target: Mapping[str, Any]) -> tuple[str, str, str, str]:
        """Return the first four fields of a target's figures."""
        return self._result.path, self._probe, target["name"], target["role"]

    def _predicted(self, target: str) -> Mapping[str, NDArray[np.int64]]:
        return next(one.predicted for one in self._result.outcome.targets if one.name == target)

    def _query_figures(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        for quantity in QUERY_COUNTS:
            yield Figure(*self._names(target), "", quantity, target["queries"][quantity])

    def _mean(self, target: Mapping[str, Any], group: str, members: Sequence[str]) -> Figure:
        """Return the mean accuracy over the conditions of a group; without a value if one of them was not measured."""
        rates = [rate for condition in target["conditions"] if condition["name"] in members and (rate := condition["accuracy"]) is not None]
        names = (*self._names(target), group)
        if len(rates) < len(members) or not all(rate["n"] for rate in rates):
            return Figure(*names, "mean_accuracy", None)
        return Figure(*names, "mean_accuracy", sum(rate["value"] for rate in rates) / len(rates), n=rates[0]["n"])

    def _figures_of_target(self, target: Mapping[str, Any]) -> Iterator[Figure]:
        def figure(condition: str, quantity: str, value: float | None, **more: Any) -> Figure:
            return Figure(*self._names(target), condition, quantity, value, **more)

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
        yield from self._query_figures(target)
        for condition, measures in target["uncertainty"].items():
            for measure in MEASURES:
                area = (measures.get(measure) or {}).get("auroc")
                if area is not None:
                    more = {"low": area["low"], "high": area["high"], "n": area["n_clean"] + area["n_perturbed"]}
                    yield figure(condition, f"auroc_{measure}", area["value"], **more)
