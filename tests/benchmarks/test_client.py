"""The benchmark of the client: its forms, ratios and figures, and a short run on a real Triton."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.calling.figures import COMPARISONS, IMPORT_GOAL_S, P50, RATE, TITLES, compute_figures, compute_ratios
from benchmarks.calling.page import page
from benchmarks.calling.timing import time_one_caller, time_tasks
from benchmarks.client import BATCH, CALLERS, SCHEMA, Effort, measure
from benchmarks.common.figures import exit_status
from benchmarks.common.forms import Form, WrongAnswerError
from tests.support import tiny
from tests.support.facts import raises

SEEDS = {"alpha": 1, "beta": 2}
IMPORTS = {"import_s": {"median": 0.05}, "first_http_call_s": {"median": 0.2}, "unwanted_modules": []}


def timings(**changes: float) -> dict[str, dict[str, list[float]]]:
    """Return equal timings of all forms, multiplied by `changes` for the first form of the comparison of that name."""
    found: dict[str, dict[str, list[float]]] = {P50: {}, RATE: {}}
    for comparison in COMPARISONS:
        for name in (comparison.ours, comparison.theirs):
            found[comparison.quantity][name] = [4.0, 8.0, 2.0]
    for comparison in COMPARISONS:
        if comparison.key in changes:
            values = found[comparison.quantity][comparison.ours]
            found[comparison.quantity][comparison.ours] = [changes[comparison.key] * value for value in values]
    return found


def figures(changes: dict[str, float] | None = None, imports: dict[str, Any] | None = None) -> dict[str, Any]:
    return compute_figures(compute_ratios(timings(**(changes or {}))), imports or IMPORTS)


def test_ratios_are_within_a_round() -> None:
    found = timings()
    found[P50]["gRPC, Client"] = [4.4, 8.0, 3.0]
    assert compute_ratios(found)["grpc_p50_to_tritonclient"] == {"median": 1.1, "min": 1.0, "max": 1.5, "rounds": [1.1, 1.0, 1.5]}


def test_equal_forms_meet_every_goal() -> None:
    without_goal = {
        "grpc_p50_to_stub",
        "grpc_throughput_to_stub",
        "grpc_client_to_transport",
        "http_client_to_transport",
        "first_http_call_s",
    }
    assert set(figures()) == set(TITLES) - without_goal
    assert exit_status(figures()) == 0


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("http_p50_to_socket", 1.05, 1.06),
        ("grpc_throughput_to_tritonclient", 0.97, 0.96),
        ("http_async_to_threads", 1.0, 0.99),
        ("http_to_grpc", 0.9, 0.89),
        ("grpc_balancing", 1.02, 1.03),
    ],
)
def test_goals_are_limits(key: str, good: float, bad: float) -> None:
    assert figures({key: good})[key]["holds"]
    assert not figures({key: bad})[key]["holds"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("import_s", {"median": IMPORT_GOAL_S + 0.01}), ("unwanted_modules", ["torch"])],
)
def test_slow_and_heavy_imports_miss_their_goal(key: str, value: Any) -> None:
    found = figures(imports={**IMPORTS, key: value})
    assert [name for name, figure in found.items() if not figure["holds"]] == [key]


def test_forms_of_one_caller_take_turns() -> None:
    order: list[str] = []

    def form(name: str, seconds: float) -> Form:
        def predict(images: tiny.Array) -> tiny.Array:
            order.append(name)
            time.sleep(seconds)
            return images

        return Form(name, predict)

    forms = [form("short", 0.001), form("long", 0.004)]
    timed = time_one_caller(forms, tiny.images(1), blocks=3, calls=2, generator=np.random.default_rng(0))
    assert sorted(order[:4]) == sorted(order[4:8]) == ["long", "long", "short", "short"]
    assert order[0] == order[1]
    assert 1 <= timed["short"].p50_ms
    assert 4 <= timed["long"].p50_ms
    assert 0 < timed["short"].cpu_us < 1e6


def test_tasks_call_at_the_same_time() -> None:
    async def predict(images: tiny.Array) -> None:
        await asyncio.sleep(0.02)

    images = tiny.images(6).reshape(3, 2, *tiny.SHAPE)
    timing = asyncio.run(time_tasks(predict, images, 10, warm_s=0.03, seconds=0.2))
    one_task, all_tasks = 2 / 0.02, 10 * 2 / 0.02
    assert one_task < timing.images_per_s <= all_tasks * 1.001  # a sleep is never shorter
    assert min(timing.calls_ms) >= 20


def expected(images: tiny.Array) -> tiny.Array:
    probabilities: tiny.Array = np.mean([tiny.softmax(tiny.logits(seed, images)) for seed in SEEDS.values()], axis=0)
    return probabilities


@pytest.mark.slow
def test_a_short_run_on_a_real_triton() -> None:
    images = tiny.images(CALLERS * BATCH)
    members = [tiny.member(name, seed) for name, seed in SEEDS.items()]
    effort = Effort(rounds=2, blocks=2, calls=2, turns=2, seconds=0.1, warm_s=0.05, tasks_warm_s=0.2, imports=1)
    with raises(WrongAnswerError, "gRPC, Client"):
        measure(members, images, expected(images) + 0.01, effort)
    messages: list[str] = []
    result = json.loads(json.dumps(measure(members, images, expected(images), effort, on_progress=messages.append), allow_nan=False))
    assert result["schema"] == SCHEMA
    assert {"seed", "hardware", "versions", "git_commit", "measured_at"} <= set(result)
    assert result["largest_difference"] < 1e-5
    assert result["imports"]["unwanted_modules"] == []
    assert len(result["one_caller"]["forms"]) == 9
    for form in result["one_caller"]["forms"].values():
        assert len(form[P50]["rounds"]) == 2
        assert form["cpu_us"]["min"] > 0
    assert {comparison.ours for comparison in COMPARISONS if comparison.quantity == RATE} < set(result["many_callers"]["forms"])
    for form in result["many_callers"]["forms"].values():
        assert form[RATE]["min"] > 0
        assert form["calls"] >= 0  # in a window shorter than a call, none ends
    assert set(result["figures"]) == set(figures())
    assert sum("one caller" in line for line in messages) == sum("many callers" in line for line in messages) == 2
    spec = {"arch": "linear", "width": 1, "keep": 1.0}
    text = page({**result, "quick": True, "note": "A note.", "duration_s": 1.0, "member_spec": spec}, "x.json")
    for fact in ("A note.", "x.json", "too short", *(TITLES[key] for key in (*figures(), "first_http_call_s"))):
        assert fact in text
