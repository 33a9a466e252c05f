"""Compute where the time of traced calls goes. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure
from benchmarks.tracing.server import Call

LEAST_CALLS = 20
PARTS = {
    "received": "front end: from the first byte read to the request",
    "queued": "scheduler and queue, until the first run starts",
    "members": "from the start of the first run to the end of the last",
    "to_average": "from the last member to the averaging model",
    "average": "averaging model",
    "responded": "statistics and response, until it is sent",
    "outside": "caller and network",
}
MEMBER_PARTS = {
    "waits": "waits for its turn",
    "input": "reads its input",
    "run": "runs in ONNX Runtime",
    "output": "hands over its output",
}


def split_call(call: Call) -> dict[str, float] | None:
    """Return the duration of each part of a call, in ms; None if its trace is incomplete. `total` is the time inside the server."""
    times = call.times
    received = times.get("HTTP_RECV_START", times.get("GRPC_WAITREAD_END"))
    sent = times.get("HTTP_SEND_END", times.get("GRPC_SEND_END"))
    members = [step.times for step in call.steps if not step.model.startswith("average_")] if call.steps else [times]
    averages = [step.times for step in call.steps if step.model.startswith("average_")]
    if received is None or sent is None or len(averages) != bool(call.steps) or not all("COMPUTE_END" in own for own in members + averages):
        return None
    started = min(own["COMPUTE_START"] for own in members)
    ended = max(own["COMPUTE_OUTPUT_START"] for own in members)
    marks = {"received": times["REQUEST_START"], "queued": started, "members": ended}
    if averages:
        marks |= {"to_average": averages[0]["COMPUTE_START"], "average": averages[0]["COMPUTE_END"]}
    marks["responded"] = sent
    parts, before = {}, received
    for name, mark in marks.items():
        parts[name], before = (mark - before) / 1e6, mark
    return {**parts, "total": (sent - received) / 1e6}


def split_members(call: Call) -> list[dict[str, float]]:
    """Return the duration of each part of each member's request, in ms."""
    members = [step.times for step in call.steps if not step.model.startswith("average_")] if call.steps else [call.times]
    events = ("QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
    return [
        {part: (own[end] - own[start]) / 1e6 for part, start, end in zip(MEMBER_PARTS, events, events[1:], strict=False)} for own in members
    ]


def summarise(calls: Sequence[Call], call_ms: float) -> dict[str, Any]:
    """Return medians over the traced calls of one setting, in ms, as JSON.

    Args:
        calls: The traced calls.
        call_ms: Median duration of a call, as the caller sees it.
    """
    split = [(call, parts) for call in calls if (parts := split_call(call)) is not None]
    if not split:
        return {"traced": 0, "call_ms": round(call_ms, 3), "parts": {}, "member": {}}
    medians = {name: _median([parts[name] for _, parts in split]) for name in split[0][1]}
    members = [parts for call, _ in split for parts in split_members(call)]
    medians["outside"] = round(call_ms - medians.pop("total"), 3)
    return {
        "traced": len(split),
        "call_ms": round(call_ms, 3),
        "parts": medians,
        "member": {part: _median([parts[part] for parts in members]) for part in MEMBER_PARTS},
    }


def compute_figures(settings: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Compute the figure: the smallest number of traced calls in any setting."""
    return {"least_traced_calls": at_least_figure(min(setting["traced"] for setting in settings), LEAST_CALLS)}


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)
