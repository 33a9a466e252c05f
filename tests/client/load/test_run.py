"""Load tests of real servers, and of one whose capacity is known."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from defensemble import ConnectionFailedError, InputError, WorkerEndedError
from defensemble.load import ClientCounters, LoadSettings, Progress, Slo, find_capacity, read_load_result, run_load
from defensemble.load.session import MAX_LATE_SHARE
from defensemble.results import write_result
from defensemble_server import Server
from tests.support.facts import assert_facts, raises
from tests.support.slow_server import slow_server
from tests.support.tiny import images


def may_be_realtime() -> bool:
    """Whether the system allows a process of this user real-time priority."""
    return subprocess.run(["chrt", "--rr", "1", "true"], capture_output=True, check=False).returncode == 0


def test_a_closed_loop_counts_what_the_server_counts(triton: Server, tmp_path: Path) -> None:
    seen: list[Progress] = []
    settings = LoadSettings(callers=(3,), batch_sizes={1: 3, 4: 1}, step_s=0.3, warm_up_s=0.0, slo=Slo(0.5, 1e5))
    result = run_load(triton.http_url, settings, on_progress=seen.append)
    (target,) = result.targets
    (step,) = target.steps
    assert step.answered == step.sent > 0
    assert (step.failed, step.failures, step.unsent, step.callers, step.rate_per_s) == (0, {}, 0, 3, None)
    assert step.server_counters is not None
    assert set(step.server_counters.models) >= {"ensemble", "alpha", "beta"}
    for name in ("ensemble", "alpha", "beta"):
        counted = step.server_counters.models[name]
        assert (counted.requests, counted.images, counted.failures) == (step.sent, step.images, 0)
        assert counted.compute_ms is not None
        assert counted.success_ms is not None
        assert 0 < counted.compute_ms
    assert step.answered < step.images < 4 * step.answered
    assert step.latency_ms is not None
    assert 0 < step.latency_ms.p50 <= step.latency_ms.p99 <= step.latency_ms.max
    assert step.requests_per_s == pytest.approx(step.answered / step.seconds)
    assert step.client_counters == ClientCounters(step.sent, 0, step.images)
    assert step.attainment == 1.0
    assert step.goodput_per_s == pytest.approx(step.requests_per_s)
    assert sum(second.answered for second in step.timeline) == step.answered
    assert seen[-1].step == step
    write_result(tmp_path / "load.json", result.json())
    assert read_load_result(tmp_path / "load.json") == result


@pytest.mark.slow
def test_targets_take_turns_with_the_same_calls_over_both_protocols(triton: Server) -> None:
    order: list[tuple[str, str]] = []
    settings = LoadSettings(rates=(30, 60), batch_sizes={1: 0.8, 8: 0.2}, step_s=1.0, warm_up_s=0.2, ramp_s=0.2, processes=1)
    result = run_load(
        [triton.http_url, triton.grpc_url],
        settings,
        on_progress=lambda progress: order.append((progress.url, progress.load)) if progress.step else None,
    )
    urls = (triton.http_url, triton.grpc_url)
    assert order == [(url, f"{rate}/s") for rate in (30, 60) for url in urls]
    assert result.settings.realtime == may_be_realtime()
    first, second = result.targets
    for step, other in zip(first.steps, second.steps, strict=True):
        assert step.sent == other.sent
        assert step.images == other.images
        assert step.schedule is not None
    for target in result.targets:
        for step in target.steps:
            assert step.answered == step.sent
            assert step.server_counters is not None
            assert step.server_counters.models["ensemble"].requests == step.sent
            assert abs(step.sent - (step.rate_per_s or 0)) < 6 * np.sqrt(step.rate_per_s or 0)


@pytest.mark.slow
def test_several_processes_share_the_calls(triton: Server) -> None:
    settings = LoadSettings(callers=(4,), step_s=0.5, warm_up_s=0.1, processes=2)
    result = run_load(triton.grpc_url, settings, images(20))
    assert (result.settings.processes, result.settings.realtime) == (2, False)
    assert (result.settings.images, result.settings.image_count) == ("array", 20)
    (step,) = result.targets[0].steps
    assert step.server_counters is not None
    assert step.server_counters.models["ensemble"].requests == step.sent == step.answered


@pytest.mark.slow
def test_the_capacity_of_a_server_without_statistics_is_near_that_which_is_known() -> None:
    with slow_server(0.02) as server:
        result = find_capacity(server.url, LoadSettings(model="slow", arrivals="constant", step_s=3.0, warm_up_s=0.2, slo=Slo(0.9, 400.0)))
        (target,) = result.targets
        assert target.capacity is not None
        assert target.capacity.rate_per_s is not None
        known = len(server.rows) / server.busy_s
        judged = [trial for trial in target.capacity.tried if trial.valid]
        assert all(trial.holds == (trial.rate_per_s < known) for trial in judged if abs(trial.rate_per_s / known - 1) > 0.25)
        # A busy machine keeps the generator from its schedule at some rates.
        assert target.capacity.rate_per_s == pytest.approx(known, rel=0.25) or len(judged) < len(target.capacity.tried)
        assert len(target.steps) == len(target.capacity.tried)
        assert all(step.server_counters is None for step in target.steps)
        sent = sum(step.sent for step in target.steps)
        assert sent <= len(server.rows)


@pytest.mark.slow
def test_a_step_without_calls_is_reported_and_holds_nothing() -> None:
    with slow_server(0.2) as server:
        settings = LoadSettings(model="slow", rates=(0.01,), step_s=0.5, warm_up_s=0.0, slo=Slo(0.99, 50.0))
        result, found = run_load(server.url, settings), find_capacity(server.url, settings)
    for (step,) in (result.targets[0].steps, found.targets[0].steps):
        assert (step.sent, step.unsent, step.seconds, step.attainment, step.latency_ms, step.valid) == (0, 0, 0.5, None, None, True)
        assert step.problem is not None
    capacity = found.targets[0].capacity
    assert capacity is not None
    assert (capacity.rate_per_s, capacity.bracket, [trial.holds for trial in capacity.tried]) == (None, (None, 0.01), [False])


@pytest.mark.slow
def test_a_generator_that_did_not_run_reports_no_latency() -> None:
    frozen: list[int] = []

    def freeze(progress: Progress) -> None:
        if progress.elapsed_s and not frozen:
            (process,) = [child for child in multiprocessing.active_children() if child.name == "load generator"]
            assert process.pid is not None
            frozen.append(process.pid)
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.4)
            os.kill(process.pid, signal.SIGCONT)

    with slow_server(0.001) as server:
        settings = LoadSettings(model="slow", rates=(50,), step_s=2.0, warm_up_s=0.0, processes=1, slo=Slo(0.9, 100))
        result = run_load(server.url, settings, on_progress=freeze)
    (step,) = result.targets[0].steps
    assert step.schedule is not None
    assert step.schedule.late_share > MAX_LATE_SHARE
    assert step.schedule.max_late_ms > 200
    assert (step.valid, step.latency_ms, step.histogram, step.attainment, step.goodput_per_s) == (False, None, None, None, None)
    assert all(second.p99_ms is None for second in step.timeline)
    assert step.problem is not None
    assert_facts(step.problem, "1 ms | 1 %")


@pytest.mark.slow
def test_a_server_that_dies_causes_failures_by_kind_and_the_test_goes_on() -> None:
    with slow_server(0.005) as server:

        def end(progress: Progress) -> None:
            if progress.step is None and progress.elapsed_s:
                server.die()

        settings = LoadSettings(model="slow", callers=(2, 3), step_s=2.0, warm_up_s=0.0, timeout_s=1.0)
        first, second = run_load(server.url, settings, on_progress=end).targets[0].steps
    assert 0 < first.answered <= len(server.rows) <= first.answered + 2  # two were under way
    assert set(first.failures) == set(second.failures) == {"ConnectionFailedError"}
    assert first.failed == first.sent - first.answered > 0
    assert first.client_counters == ClientCounters(first.sent, first.failed, first.images)
    assert first.latency_ms is not None
    assert first.latency_ms.max < 1000  # of the answers; the failures are none of it
    assert (second.answered, second.latency_ms, second.requests_per_s, second.valid) == (0, None, 0.0, True)
    assert second.problem is not None
    assert second.failed <= 3 * 2.0 / 0.05 + 3  # callers pause after a failure


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_test() -> None:
    def kill(progress: Progress) -> None:
        for child in multiprocessing.active_children():
            if child.name == "load generator" and child.pid is not None:
                os.kill(child.pid, signal.SIGKILL)

    with slow_server(0.001) as server, raises(WorkerEndedError, "SIGKILL"):
        run_load(server.url, LoadSettings(model="slow", callers=(1,), step_s=1.0, warm_up_s=0.0), on_progress=kill)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (LoadSettings(callers=(1,), batch_sizes=9), "ensemble | 8 | 9"),
        (LoadSettings(callers=(1,), model="alpha", outputs=("mutual_information",)), "alpha | mutual_information"),
        (LoadSettings(), "callers | rates"),
    ],
)
def test_what_a_model_does_not_accept_is_refused_before_any_process_starts(triton: Server, settings: LoadSettings, facts: str) -> None:
    with raises(InputError, facts):
        run_load(triton.http_url, settings)
    assert not multiprocessing.active_children()


def test_each_server_is_named_once_and_is_reached_first() -> None:
    with raises(InputError, "http://localhost:1 | 2"):
        run_load(["http://localhost:1", "http://localhost:1/"], LoadSettings(callers=(1,)))
    with pytest.raises(ConnectionFailedError):
        run_load("http://127.0.0.1:1", LoadSettings(callers=(1,), timeout_s=2.0))
    with raises(InputError, "slo"):
        find_capacity("http://localhost:1", LoadSettings())
