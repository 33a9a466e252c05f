"""Limits for continuous integration: which rates of an outcome are below what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .._exceptions import InputError
from ..results.intervals import Rate
from .base import CLEAN, NOISE, PerturbationProbe, Probe
from .outcome import ProbeOutcome, TargetOutcome
from .transfer import Transfer

CLEAN_LIMIT = CLEAN
LIMITS = ("accuracy", "defense_rate", "defense_rate_source_fooled", "accuracy_on_common", CLEAN_LIMIT)
"""Rates that can have a limit: those of `ConditionRates`, and the accuracy on clean images."""


@dataclass(frozen=True)
class Miss:
    """A rate below its limit.

    Attributes:
        target: Name of the target.
        rate_name: One of `LIMITS`.
        condition: The condition with the lowest value; for a rate that was not measured, the first such condition.
        rate: The rate; None if it was not measured.
        limit: What was asked for.

    Example:
        >>> [str(miss) for miss in misses(outcome, {"defense_rate": 0.7})]
    """

    target: str
    rate_name: str
    condition: str
    rate: Rate | None
    limit: float

    def __str__(self) -> str:
        where = f"{self.target}: {self.rate_name}" + ("" if self.rate_name == CLEAN_LIMIT else f" at {self.condition}")
        if self.rate is None:
            return f"{where} was not measured; the limit is {self.limit:g}"
        if self.rate.value is None:
            return f"{where} has no images; the limit is {self.limit:g}"
        interval = f"95 % interval {self.rate.low:.4f} to {self.rate.high:.4f}, n = {self.rate.n:,}"
        return f"{where} is {self.rate.value:.4f} ({interval}), below the limit {self.limit:g}"


def limits_from_texts(texts: Sequence[str]) -> dict[str, float]:
    """Parse limits such as `defense_rate=0.7`.

    Args:
        texts: NAME=VALUE, each name once: one of `LIMITS`, and a number in [0, 1].

    Raises:
        InputError: A text has another form.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in LIMITS:
            raise InputError(f"a limit is RATE=VALUE, such as defense_rate=0.7, RATE one of {', '.join(LIMITS)}; got {text!r:.80}")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise InputError(f"the limit of {name} must be a number from 0 to 1, such as 0.7 for 70 %; got {number!r:.80}")
        if name in limits:
            raise InputError(f"{name} has two limits, {limits[name]:g} and {value:g}: pass one")
        limits[name] = value
    return limits


def check_limits(probe: Probe, limits: Mapping[str, float]) -> None:
    """Check before the first query that a probe has the rates that have limits.

    Args:
        probe: The probe.
        limits: See `misses`.

    Raises:
        InputError: The probe does not have such a rate.
    """
    if not isinstance(probe, Transfer):
        _check_source(probe.name, limits)
    if isinstance(probe, PerturbationProbe) and set(limits) - {CLEAN_LIMIT} and not probe.conditions():
        others = ", ".join(name for name in limits if name != CLEAN_LIMIT)
        raise InputError(f"{probe.name} has no {others}, since its images are not perturbed: use {CLEAN_LIMIT}, or no --fail-under")


def misses(outcome: ProbeOutcome, limits: Mapping[str, float]) -> list[Miss]:
    """Return the rates that are below their limits, at most one per target and limit: the lowest over the conditions.

    The value of a rate is compared, not the bound of its interval, which depends on the number of images. A rate that was not measured, or
    has no images, misses its limit. Random noise, the baseline of attacks, has no limit.

    Args:
        outcome: The outcome.
        limits: The lowest values that are accepted, by the names of `LIMITS`.

    Raises:
        InputError: The probe does not have such a rate.
    """
    if not outcome.is_source_fooled:
        _check_source(outcome.probe, limits)
    found = []
    for target in outcome.targets:
        for name, limit in limits.items():
            rates = _rates(outcome, target, name)
            missing = [(condition, rate) for condition, rate in rates if rate is None or rate.value is None]
            condition, lowest = (missing or sorted(rates, key=_value))[0]
            if lowest is None or lowest.value is None or lowest.value < limit:
                found.append(Miss(target.name, name, condition, lowest, limit))
    return found


def _check_source(probe: str, limits: Mapping[str, float]) -> None:
    if "defense_rate_source_fooled" in limits:
        raise InputError(f"{probe} has no defense_rate_source_fooled, since its images have no source network: use defense_rate")


def _rates(outcome: ProbeOutcome, target: TargetOutcome, name: str) -> list[tuple[str, Rate | None]]:
    if name == CLEAN_LIMIT:
        return [(CLEAN, outcome.clean_rate(target))]
    baseline = {condition.name for condition in outcome.conditions if condition.group == NOISE}
    by_condition = [(rates.name, getattr(rates, name)) for rates in outcome.rates(target) if rates.name not in baseline]
    if name == "defense_rate_source_fooled":
        by_condition = [(condition, rate) for condition, rate in by_condition if condition in outcome.is_source_fooled]
    return by_condition or [(CLEAN, None)]


def _value(entry: tuple[str, Rate | None]) -> float:
    rate = entry[1]
    return math.inf if rate is None or rate.value is None else rate.value
