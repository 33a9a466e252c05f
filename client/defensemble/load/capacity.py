"""The search for the highest rate at which a latency objective holds."""

from __future__ import annotations

import math

from .display import number
from .recording import Recording
from .result import Capacity, Slo, Step, Trial
from .settings import MAX_RATE_PER_S

RESOLUTION = 1.05
"""The search ends when the lowest rate that does not hold is at most this many times the highest that does."""
CONFIRMATIONS = 2
"""How often the final rate must hold once more."""
_LOWEST_PER_S = 0.1
_MOST_TRIALS = 40
_TRIES_OF_THE_GENERATOR = 2
_GROWTH_SHARE = 0.025  # half of the resolution: a server that leaves more of the calls unanswered is too slow for them


class CapacitySearch:
    """Chooses the rates to try.

    Args:
        first: The first rate, in calls per second.

    Example:
        >>> search = CapacitySearch(10.0)
        >>> while (rate := search.next_rate()) is not None:
        ...     search.add(try_rate(rate))
        >>> search.result().rate_per_s
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._low: float | None = None
        self._high: float | None = None
        self._confirmed = 0
        self._missed = 0  # how often the generator missed its schedule at the current rate
        self._generator_limit: float | None = None
        self._empty_at: float | None = None  # the rate at which a step had no call
        self._tried: list[Trial] = []
        self._holding: set[float] = set()

    def next_rate(self) -> float | None:
        """Return the next rate to try; None at the end."""
        if len(self._tried) >= _MOST_TRIALS:
            return None
        if self._missed:
            return self._tried[-1].rate_per_s
        if self._high is None:
            rate = self._first if self._low is None else 2 * self._low
            return rate if rate <= MAX_RATE_PER_S else None
        if self._low is None:
            return self._high / 2 if self._high / 2 >= _LOWEST_PER_S and self._empty_at is None else None
        if self._high > self._low * RESOLUTION:
            return (self._low + self._high) / 2
        return self._low if self._confirmed < CONFIRMATIONS else None

    def add(self, trial: Trial) -> None:
        """Add the trial of the rate that `next_rate` returned."""
        self._tried.append(trial)
        rate = trial.rate_per_s
        if not trial.valid and self._missed + 1 < _TRIES_OF_THE_GENERATOR:
            self._missed += 1
            return
        self._missed = 0
        if trial.holds:
            self._confirmed = self._confirmed + 1 if rate == self._low else 0
            self._holding.add(rate)
            self._low = rate
            return
        if trial.valid and trial.attainment is None:
            self._empty_at = rate
        if not trial.valid:
            self._generator_limit = rate
        elif self._generator_limit is not None and rate <= self._generator_limit:
            self._generator_limit = None
        self._high, self._confirmed = rate, 0
        self._holding = {held for held in self._holding if held < rate}
        self._low = max(self._holding, default=None)

    def result(self, *, was_interrupted: bool = False) -> Capacity:
        """Return what was found.

        Args:
            was_interrupted: Whether the search was interrupted.
        """
        is_confirmed = self._low is not None and self._confirmed >= CONFIRMATIONS
        problem = None
        if was_interrupted:
            problem = "interrupted"
        elif self._generator_limit is not None:
            problem = f"at {number(self._generator_limit)}/s the load generator missed its schedule: the server may hold more"
        elif self._empty_at is not None and not is_confirmed:
            problem = f"at {number(self._empty_at)}/s a step was too short for a single call: use longer steps"
        elif self._low is None:
            problem = "no rate that was tried holds"
        elif not is_confirmed:
            problem = "the search did not end: the server answers equal loads differently, or the limit of the generator was reached"
        high = None if self._generator_limit is not None else self._high
        return Capacity(self._low, tuple(self._tried), (self._low, high), problem)


def trial_from_step(step: Step, recording: Recording, slo: Slo) -> Trial:
    """Judge a step of an open loop.

    Args:
        step: The step.
        recording: What it is the result of.
        slo: The objective.
    """
    rate = step.rate_per_s
    assert rate is not None
    if not step.valid or not step.sent + step.unsent:
        return Trial(rate, None, None, False, step.problem, step.valid)
    quantile_ms = recording.quantile_ms(slo.quantile)
    finite_ms = quantile_ms if math.isfinite(quantile_ms) else None
    first, last = recording.in_flight()
    unanswered = _GROWTH_SHARE * rate * recording.seconds * 2 / 3  # between the middles of the first and the last third
    problem = None
    if finite_ms is None:
        problem = f"{slo.name} is infinite: {step.failed + step.unsent} of {step.sent + step.unsent} calls failed"
    elif finite_ms > slo.latency_ms:
        problem = f"{slo.name} is {finite_ms:.1f} ms"
    elif last > 2 * first and last - first > max(unanswered, 2.0):
        problem = f"calls pile up: {first:.1f} under way in the first third of the step, {last:.1f} in the last"
    return Trial(rate, step.attainment, finite_ms, problem is None, problem)
