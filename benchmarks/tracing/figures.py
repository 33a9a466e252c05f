"""Compute where the time of traced calls goes. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
    members, averages = [step.times for step in call.members], [step.times for step in call.averages]
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
    events = ("QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
    return [
        {part: (step.times[end] - step.times[start]) / 1e6 for part, start, end in zip(MEMBER_PARTS, events, events[1:], strict=False)}
        for step in call.members
    ]


def summarise(calls: Sequence[Call], call_ms: float | None) -> dict[str, Any]:
    """Return medians over the traced calls of one setting, in ms, as JSON.

    Args:
        calls: The traced calls.
        call_ms: Median duration of a call, as the caller sees it; None if no call ended.
    """
    split = [(call, own) for call in calls if (own := split_call(call)) is not None]
    if not split or call_ms is None:
        return {"traced": 0, "call_ms": call_ms, "parts": {}, "member": {}}
    parts = {name: _quartiles([own[name] for _, own in split]) for name in split[0][1]}
    total = parts.pop("total")["median"]
    members = [own for call, _ in split for own in split_members(call)]
    return {
        "traced": len(split),
        "call_ms": round(call_ms, 3),
        "parts": {**parts, "outside": {"median": round(call_ms - total, 4)}},
        "member": {part: _quartiles([own[part] for own in members]) for part in MEMBER_PARTS},
    }


def compute_figures(settings: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Compute the figure: the smallest number of traced calls in any setting."""
    return {"least_traced_calls": at_least_figure(min(setting["traced"] for setting in settings), LEAST_CALLS)}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": round(float(median), 4), "lower": round(float(lower), 4), "upper": round(float(upper), 4)}
