"""What a server counted between two readings of its statistics."""

from __future__ import annotations

from typing import Any

from defensemble import ModelStatistics
from defensemble.load.counters import Snapshot, counters_between


def entry(name: str, version: int, requests: int, **counts: Any) -> ModelStatistics:
    return ModelStatistics(name, version, requests, counts.pop("executions", requests), 0, **counts)


def test_the_versions_of_a_model_are_added_up_and_means_are_of_the_successful_requests() -> None:
    before = [entry("a", 1, 10, images=10, success_ns=10**9, queue_ns=10**8, compute_ns=10**7)]
    after = [
        entry(
            "a", 1, 14, failures=1, executions=12, images=22, success_ns=10**9 + 12_000_000, queue_ns=10**8 + 3_000_000, compute_ns=10**7
        ),
        entry("a", 2, 3, executions=2, images=4, success_ns=0, compute_ns=6_000_000),
        entry("b", 1, 5),
    ]
    counted = counters_between(Snapshot(1.0, before), Snapshot(3.5, after), {"a"})
    assert counted is not None
    assert counted.window_s == 2.5
    assert list(counted.models) == ["a"]
    a = counted.models["a"]
    assert (a.requests, a.failures, a.executions, a.images, a.mean_batch) == (7, 1, 4, 16, 4.0)
    assert (a.success_ms, a.queue_ms, a.compute_ms) == (2.0, 0.5, 1.0)


def test_a_model_that_was_loaded_again_counts_from_then_on() -> None:
    counted = counters_between(Snapshot(0.0, [entry("a", 1, 100)]), Snapshot(1.0, [entry("a", 1, 7)]), set())
    assert counted is not None
    assert counted.models["a"].requests == 7
    # Since then it has had more requests than before, but has computed less.
    before = [entry("a", 1, 100, compute_ns=9_000_000)]
    counted = counters_between(Snapshot(0.0, before), Snapshot(1.0, [entry("a", 1, 150, compute_ns=3_000_000)]), set())
    assert counted is not None
    assert (counted.models["a"].requests, counted.models["a"].compute_ms) == (150, 0.02)


def test_without_names_the_models_that_got_requests_are_reported_and_without_statistics_none() -> None:
    before = Snapshot(0.0, [entry("a", 1, 5), entry("b", 1, 5)])
    counted = counters_between(before, Snapshot(1.0, [entry("a", 1, 6), entry("b", 1, 5)]), set())
    assert counted is not None
    assert list(counted.models) == ["a"]
    assert counters_between(before, Snapshot(1.0, None), set()) is None
    assert counters_between(Snapshot(0.0, None), before, set()) is None
