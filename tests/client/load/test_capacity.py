"""The search for the capacity, on servers whose capacity is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble.load import Capacity, Slo, Trial
from defensemble.load.calling import CallRecord
from defensemble.load.capacity import CapacitySearch, trial_from_step
from defensemble.load.recording import Recording
from defensemble.load.schedule import arrival_times
from tests.support.load_steps import open_step

SLO = Slo(0.99, 100.0)


def search(first: float, limit: float, generator_limit: float = np.inf) -> Capacity:
    found = CapacitySearch(first)
    while (rate := found.next_rate()) is not None:
        is_late = rate > generator_limit
        found.add(Trial(rate, float(rate <= limit), None, rate <= limit and not is_late, None, valid=not is_late))
    return found.result()


@settings(max_examples=40)
@given(first=st.floats(0.5, 1e4), limit=st.floats(0.5, 1e5))
def test_the_rate_is_within_five_percent_and_was_confirmed(first: float, limit: float) -> None:
    found = search(first, limit)
    assert found.rate_per_s is not None
    assert limit / 1.05 <= found.rate_per_s <= limit
    assert found.bracket[1] is not None
    assert found.rate_per_s < found.bracket[1] <= 1.05 * found.rate_per_s
    assert [trial.rate_per_s for trial in found.tried].count(found.rate_per_s) >= 3
    assert found.problem is None


def test_no_rate_holds() -> None:
    found = search(8.0, 0.0)
    assert found.rate_per_s is None
    assert found.bracket[0] is None
    assert found.problem is not None


def test_the_limit_of_the_generator_is_not_taken_for_that_of_the_server() -> None:
    found = search(10.0, 1e9, generator_limit=300.0)
    assert found.rate_per_s == pytest.approx(300, rel=0.05)
    assert found.bracket[1] is None
    assert found.problem is not None


def test_a_rate_that_held_once_by_luck_is_not_confirmed() -> None:
    found, lucky = CapacitySearch(10.0), {95.0}
    while (rate := found.next_rate()) is not None:
        holds = rate <= 70 or (bool(lucky) and rate <= 100)
        if 70 < rate <= 100:
            lucky.clear()
        found.add(Trial(rate, 1.0, 10.0, holds, None))
    rate = found.result().rate_per_s
    assert rate is not None
    assert 70 / 1.05 <= rate <= 70


def test_steps_without_calls_hold_nothing() -> None:
    slo = Slo(0.99, 50.0)
    empty = 0
    for seed in range(4):
        found, steps = CapacitySearch(8.0), 0
        while (rate := found.next_rate()) is not None:
            recording = Recording(5.0, slo)
            times = arrival_times("poisson", rate, 5.0, 0.0, np.random.default_rng((seed, steps)))
            recording.add([CallRecord(time, time + 0.2, 0.0, 1, None) for time in times])  # none is answered within the objective
            trial = trial_from_step(open_step(rate, recording), recording, slo)
            assert (trial.holds, trial.valid, trial.attainment) == (False, True, 0.0 if len(times) else None)
            found.add(trial)
            steps, empty = steps + 1, empty + (not len(times))
        capacity = found.result()
        assert capacity.rate_per_s is None
        assert capacity.problem is not None
        assert sum(trial.attainment is None for trial in capacity.tried) <= 1  # the search ends there
    assert empty > 1


def served(rate: float, service_s: float, seconds: float, seed: int = 0) -> Recording:
    """The calls of a server that takes one call after the other."""
    recording, free = Recording(seconds, SLO), 0.0
    records = []
    for arrival in arrival_times("poisson", rate, seconds, 0.0, np.random.default_rng(seed)):
        free = max(free, arrival) + service_s
        records.append(CallRecord(arrival, free, 0.0, 1, None))
    recording.add(records)
    return recording


def test_the_queue_of_a_server_above_its_capacity_is_seen_though_the_objective_is_met() -> None:
    lax = Slo(0.99, 5000.0)
    below, above = served(50, 0.01, 10.0), served(115, 0.01, 10.0)
    assert trial_from_step(open_step(50, below), below, lax).holds
    trial = trial_from_step(open_step(115, above), above, lax)
    assert not trial.holds
    assert trial.quantile_ms is not None
    assert trial.quantile_ms < lax.latency_ms


def test_the_quantile_is_that_of_all_calls() -> None:
    recording = served(50, 0.001, 4.0)
    assert trial_from_step(open_step(50, recording), recording, SLO).holds
    recording.add([CallRecord(0.0, 0.1, 0.0, 1, "ConnectionFailedError")] * 5)
    trial = trial_from_step(open_step(50, recording), recording, SLO)
    assert not trial.holds
    assert trial.quantile_ms is None
