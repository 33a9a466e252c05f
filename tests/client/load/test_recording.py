"""What is counted of the calls of a step, against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings, strategies as st

from defensemble.load import ClientCounters, LoadSettings, Slo
from defensemble.load.calling import UNSENT, CallRecord
from defensemble.load.recording import Recording
from defensemble.load.session import judge_step
from defensemble.load.worker import PhaseEnd
from tests.support.facts import assert_facts

BEGIN = 1000.0
PRECISION = 1.5e-3  # three significant digits, and rounding to microseconds


def recorded(calls: list[CallRecord], seconds: float = 10.0, slo: Slo | None = None, parts: int = 3) -> Recording:
    recording = Recording(seconds, slo)
    recording.begin_at(BEGIN)
    for part in range(parts):
        recording.add(calls[part::parts])
    return recording


def answers(latencies: list[float]) -> list[CallRecord]:
    return [CallRecord(BEGIN + 0.01 * number, BEGIN + 0.01 * number + latency, 0.0, 1, None) for number, latency in enumerate(latencies)]


@settings(max_examples=20)
@given(latencies=st.lists(st.floats(1e-3, 500), min_size=1, max_size=100))
def test_quantiles_are_those_of_numpy(latencies: list[float]) -> None:
    latency = recorded(answers(latencies)).latency()
    assert latency is not None
    for percent, got in ((50, latency.p50), (90, latency.p90), (99, latency.p99), (99.9, latency.p99_9)):
        # HdrHistogram rounds the rank to the nearest: one of the two neighbours.
        upper = 1000 * float(np.percentile(latencies, percent, method="higher"))
        lower = 1000 * float(np.percentile(latencies, percent, method="lower"))
        lower = min(lower, 1000 * sorted(latencies)[max(round(percent / 100 * len(latencies)) - 1, 0)])
        assert lower * (1 - PRECISION) <= got <= upper * (1 + PRECISION)
    assert latency.max == pytest.approx(1000 * max(latencies))
    assert latency.mean == pytest.approx(1000 * np.mean(latencies))


def test_a_failure_is_counted_and_is_never_a_latency() -> None:
    calls = answers([0.01] * 98)
    calls += [CallRecord(BEGIN, BEGIN + 9, 0.0, 4, "DeadlineExceededError"), CallRecord(BEGIN + 1, BEGIN + 3, 0.0, 4, UNSENT)]
    recording = recorded(calls, slo=Slo(0.99, 50.0))
    latency = recording.latency()
    assert latency is not None
    assert latency.max == pytest.approx(10)
    assert (recording.sent, recording.answered, recording.failed, recording.unsent, recording.images) == (99, 98, 1, 1, 98)
    assert dict(recording.failures) == {"DeadlineExceededError": 1}
    assert recording.attainment() == pytest.approx(0.98)
    assert recording.quantile_ms(0.98) == pytest.approx(10, rel=PRECISION)
    assert recording.quantile_ms(0.99) == math.inf


def test_the_histogram_is_read_by_its_own_library() -> None:
    latencies = np.random.default_rng(0).lognormal(-4, 1, 5000).tolist()
    recording = recorded(answers(latencies))
    read = HdrHistogram.decode(recording.encoded_histogram())
    assert read.get_total_count() == 5000
    assert read.get_value_at_percentile(99) / 1e6 == pytest.approx(np.quantile(latencies, 0.99), rel=0.02)


def test_the_timeline_has_each_call_once_in_the_second_of_its_end() -> None:
    calls = [CallRecord(BEGIN + 0.5, BEGIN + 0.6, 0.0, 1, None), CallRecord(BEGIN + 0.9, BEGIN + 2.9, 0.0, 1, None)]
    calls.append(CallRecord(BEGIN + 2.0, BEGIN + 2.1, 0.0, 1, "NotReadyError"))
    first, second, third = recorded(calls, 3.0).timeline()
    assert [(each.s, each.sent, each.answered, each.failed) for each in (first, second, third)] == [
        (0, 2, 1, 0),
        (1, 0, 0, 0),
        (2, 1, 1, 1),
    ]
    assert (second.p99_ms, second.max_ms) == (None, None)
    assert third.p50_ms == third.max_ms == pytest.approx(2000)


def test_late_calls_are_those_of_the_generator() -> None:
    calls = [CallRecord(BEGIN, BEGIN + 1, late, 1, None) for late in (0.0, 0.0009, 0.0011, 0.2)]
    schedule = recorded(calls).schedule()
    assert schedule.late_share == 0.5
    assert schedule.max_late_ms == pytest.approx(200)


def test_the_calls_under_way_are_their_mean() -> None:
    # A call of a second each tenth of a second, ten at a time; in the last third of 9 s each takes two seconds.
    calls = [CallRecord(BEGIN + t, BEGIN + t + (2 if t >= 6 else 1), 0.0, 1, None) for t in np.arange(-1, 9, 0.1)]
    first, last = recorded(calls, 9.0).in_flight()
    assert first == pytest.approx(10, abs=0.5)
    assert last == pytest.approx(15, abs=2)


def test_a_busy_generator_is_a_problem_of_a_closed_loop_which_stays_valid() -> None:
    answered = recorded(answers([0.01] * 5))
    for settings_, share, facts in (
        (LoadSettings(callers=(1,)), 0.9, "90 %"),
        (LoadSettings(callers=(1,)), 0.5, None),
        (LoadSettings(rates=(1.0,)), 0.9, None),  # a schedule that is kept is enough
    ):
        valid, problem = judge_step(settings_, answered, PhaseEnd((1.0,), share, ClientCounters(5, 0, 5), is_realtime=False), 1.0)
        assert valid
        assert (problem is None) == (facts is None)
        if problem is not None and facts is not None:
            assert_facts(problem, facts)
