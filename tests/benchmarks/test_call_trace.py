"""The trace of a call: reading it, its parts, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.call_trace import SCHEMA, SETTINGS, Effort, measure, repeat_after_crash
from benchmarks.common.figures import exit_status
from benchmarks.tracing.figures import compute_figures, split_call, split_members, summarise
from benchmarks.tracing.page import page
from benchmarks.tracing.server import TraceError, calls_from_entries, read_calls
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.tiny_members import expected, members

MS = 1_000_000


def entries(number: int, model: str, parent: int = 0, **times_ms: float) -> list[dict[str, Any]]:
    """What Triton writes of one request: its model, and one entry for each event."""
    first = {"id": number, "model_name": model, "model_version": 1} | ({"parent_id": parent} if parent else {})
    return [first, *({"id": number, "timestamps": [{"name": name, "ns": round(time * MS)}]} for name, time in times_ms.items())]


def step(number: int, model: str, queued: float, started: float, run: float) -> list[dict[str, Any]]:
    times: dict[str, Any] = {
        "REQUEST_START": queued - 0.1,
        "QUEUE_START": queued,
        "COMPUTE_START": started,
        "COMPUTE_INPUT_END": started + 0.01,
    }
    times |= {"COMPUTE_OUTPUT_START": started + 0.01 + run, "COMPUTE_END": started + 0.03 + run, "REQUEST_END": started + run + 0.1}
    return entries(number, model, 1, **times)


ENSEMBLE = entries(1, "ensemble", HTTP_RECV_START=10.0, HTTP_RECV_END=10.1, REQUEST_START=10.2, HTTP_SEND_START=17.5, HTTP_SEND_END=17.6)
STEPS = [step(2, "member0", 11.0, 12.0, 2.0), step(3, "member1", 11.0, 12.5, 4.0), step(4, "average_7655ea77c56188ff", 17.0, 17.1, 0.2)]
TRACE = [entry for part in (*STEPS, ENSEMBLE) for entry in part]  # steps end before their ensemble


def test_the_parts_of_a_call_sum_up_to_its_time_in_the_server() -> None:
    (call,) = calls_from_entries(TRACE)
    parts = split_call(call)
    assert parts is not None
    expected_parts = {"received": 0.2, "queued": 1.8, "members": 4.51, "to_average": 0.59, "average": 0.23, "responded": 0.27}
    assert parts == pytest.approx({**expected_parts, "total": 7.6})
    assert split_members(call) == [
        pytest.approx({"waits": 1.0, "input": 0.01, "run": 2.0, "output": 0.02}),
        pytest.approx({"waits": 1.5, "input": 0.01, "run": 4.0, "output": 0.02}),
    ]


def test_a_call_of_one_member_over_grpc_has_no_average() -> None:
    times: dict[str, Any] = {
        "GRPC_WAITREAD_END": 1.0,
        "REQUEST_START": 1.5,
        "QUEUE_START": 1.5,
        "COMPUTE_START": 2.0,
        "COMPUTE_INPUT_END": 2.1,
    }
    times |= {"COMPUTE_OUTPUT_START": 4.0, "COMPUTE_END": 4.1, "GRPC_SEND_END": 5.0}
    (call,) = calls_from_entries(entries(7, "member0", **times))
    assert split_call(call) == pytest.approx({"received": 0.5, "queued": 0.5, "members": 2.0, "responded": 1.0, "total": 4.0})


@pytest.mark.parametrize("missing", ["HTTP_RECV_START", "HTTP_SEND_END"])
def test_incomplete_traces_do_not_count(missing: str) -> None:
    trace = [entry for entry in TRACE if [event["name"] for event in entry.get("timestamps", [])] != [missing]]
    (call,) = calls_from_entries(trace)
    assert split_call(call) is None
    assert summarise([call], 8.0) == {"traced": 0, "call_ms": 8.0, "parts": {}, "member": {}}


def test_a_call_whose_average_is_missing_does_not_count() -> None:
    (call,) = calls_from_entries([entry for entry in TRACE if entry["id"] != 4])
    assert split_call(call) is None


def test_the_rest_of_a_call_is_outside_the_server() -> None:
    summary = summarise(calls_from_entries(TRACE), 8.0)
    assert summary["traced"] == 1
    assert summary["parts"]["outside"] == {"median": pytest.approx(0.4)}
    assert summary["member"]["run"] == pytest.approx({"median": 3.0, "lower": 2.5, "upper": 3.5})


def test_without_a_complete_call_there_are_no_parts() -> None:
    assert summarise(calls_from_entries(TRACE), None) == {"traced": 0, "call_ms": None, "parts": {}, "member": {}}


def test_too_few_traced_calls_miss_the_goal() -> None:
    assert compute_figures([{"traced": 19}, {"traced": 500}])["least_traced_calls"]["holds"] is False
    assert compute_figures([{"traced": 20}, {"traced": 500}])["least_traced_calls"]["holds"] is True


@pytest.mark.parametrize("content", [None, b"", b"[{"])
def test_a_missing_or_broken_trace_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trace.json"
    if content is not None:
        path.write_bytes(content)
    with raises(TraceError, str(path)):
        read_calls(path)


def test_the_tried_ideas_have_a_figure_or_a_reason() -> None:
    tried = json.loads((ROOT / "benchmarks" / "tracing" / "ideas.json").read_text())
    assert len(tried["ideas"]) >= 10
    for idea in tried["ideas"]:
        assert set(idea) == {"idea", "ratios", "kept", "remark"}
        assert set(idea["ratios"]) <= {"8x16", "8x1", "1x1"}
        assert idea["ratios"] or idea["remark"]
        assert idea["kept"] in ("yes", "no")


@pytest.mark.parametrize("crashes", [0, 1, 2])
def test_a_setting_is_measured_again_after_a_crash(crashes: int) -> None:
    messages: list[str] = []

    def trace() -> dict[str, Any]:
        if len(messages) < crashes:
            raise TraceError("exit status 1")
        return {"traced": 30}

    assert repeat_after_crash(trace, messages.append) == {"traced": 30, "crashes": crashes}
    assert len(messages) == crashes


def test_a_server_that_always_crashes_is_an_error() -> None:
    def trace() -> dict[str, Any]:
        raise TraceError("exit status 1")

    with raises(TraceError, "exit status 1"):
        repeat_after_crash(trace, list[str]().append)


@pytest.mark.slow
def test_a_short_trace_of_a_real_triton() -> None:
    images = tiny.images(128)
    result = measure(members(), images, expected(images), Effort(seconds=0.5, warm_s=0.1, traced=30))
    assert result["schema"] == SCHEMA
    assert len(result["settings"]) == 2 * 2 * len(SETTINGS)
    for setting in result["settings"]:
        assert setting["traced"] > 0
        assert min(part["lower"] for name, part in setting["parts"].items() if name != "outside") > 0
        assert ("average" in setting["parts"]) is (setting["title"] == "five members")
    assert exit_status(result["figures"]) in (0, 1)
    full = {**result, "quick": True, "note": "idle", "duration_s": 1.0, "seed": 0}
    text = page({**full, "member_spec": {"arch": "linear", "width": 1, "keep": 1.0}}, "trace.json")
    assert "HTTP, 8 x 16" in text
    assert "idle" in text
