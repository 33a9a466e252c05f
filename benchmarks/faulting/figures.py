"""Compute the result of a fault and its figures. The functions are pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure, at_most_figure, percentiles, zero_figure
from benchmarks.faulting.callers import FAILED, REJECTED, RIGHT, WRONG, Call
from benchmarks.faulting.fault import BEGIN, DETECTION, Fault
from benchmarks.faulting.running import FaultRun

RECOVERY_S, RATE_KEPT = 2.0, 0.5
_LEAST_S = 0.2  # a rate within less is that of a few calls
_TEXTS = 5


def build_row(fault: Fault, run: FaultRun) -> dict[str, Any]:
    """Return the record of a fault as JSON."""
    injection = run.injection
    detected = _detection(run)
    begin, sent_after = _reference(fault, run, detected)
    recovered = None if begin is None else _first_right(run.calls, sent_after, begin)
    wrong = [call for call in run.calls if call.verdict == WRONG]
    too_late = [call for call in wrong if not fault.may_answer_wrong or detected is None or call.sent > detected + RECOVERY_S]
    return {
        "name": fault.name,
        "action": fault.action,
        "expected": fault.expected,
        "lasted_s": round(injection.ended - injection.began, 3),
        "calls": len(run.calls),
        **{verdict: sum(call.verdict == verdict for call in run.calls) for verdict in (RIGHT, WRONG, REJECTED, FAILED)},
        "wrong_after_detection": len(too_late),
        "failures": dict(Counter(call.detail for call in run.calls if call.verdict == FAILED).most_common()),
        "details": _texts(call.detail for call in run.calls if call.verdict in (WRONG, REJECTED)),
        "longest_gap_s": {protocol: round(gap, 3) for protocol, gap in _longest_gaps(run.calls, injection.began, run.stopped).items()},
        "answered_ms": percentiles(call.arrived - call.sent for call in run.calls if call.verdict == RIGHT),
        "rate_kept": _round(_rate_kept(run.calls, injection.began, injection.ended)),
        "counts_from": fault.reference,
        "recovered_s": None if recovered is None else round(recovered, 3),
        "recovered_from_fault_s": _round(_first_right(run.calls, injection.ended, injection.began)),
        "detected_after_s": None if detected is None else round(detected - injection.began, 3),
        "not_recovered": run.not_recovered,
        "requests": dict(sorted(injection.requests.items())),
        "accepted": _texts(injection.accepted),
        "facts": injection.facts,
        "deaths": len(run.deaths),
        "events": [
            {"at_s": round(event.time - run.epoch - injection.began, 2), "kind": event.kind, **_facts(event.facts)} for event in run.events
        ],
        "memory_pss_bytes": [sample.pss_bytes for sample in (run.samples[:1] + run.samples[-1:])],
        "lost_edits": run.lost_edits,
        "later_edit": run.later_edit,
        "left_behind": run.left,
    }


def compute_figures(rows: Sequence[Mapping[str, Any]], faults: Mapping[str, Fault]) -> dict[str, Figure]:
    """Return the figures of all rows; a name is that of the fault and of what is counted."""
    figures: dict[str, Figure] = {}
    for row in rows:
        measured = row[RIGHT] > 0
        counts = {
            "wrong": row["wrong_after_detection"],
            "accepted": row["accepted"]["n"],
            "lost_edits": row["lost_edits"],
            "later_edit": int(row["later_edit"] is not None),
            "left_behind": len(row["left_behind"]),
        }
        if not faults[row["name"]].may_fail:
            counts["failed"] = row[FAILED] + row[REJECTED]
        for name, count in counts.items():
            figures[f"{row['name']}.{name}"] = zero_figure(count, measured=measured)
        if faults[row["name"]].keeps_rate:
            figures[f"{row['name']}.rate_kept"] = at_least_figure(row["rate_kept"], RATE_KEPT)
        figures[f"{row['name']}.recovered_s"] = at_most_figure(row["recovered_s"], RECOVERY_S, " s")
    return figures


def _detection(run: FaultRun) -> float | None:
    """Return when a guard or supervisor recorded the first fault, in seconds of `time.monotonic`."""
    findings = [event.facts.get("detected_at", event.time) - run.epoch for event in run.events if event.is_fault or event.kind == "wrong"]
    times = [time for time in findings if time >= run.injection.began - 0.01]  # events are recorded to the millisecond
    return min(times, default=None)


def _reference(fault: Fault, run: FaultRun, detected: float | None) -> tuple[float | None, float]:
    """Return from when the seconds count, and after when a call must be sent to show that the service has recovered."""
    if fault.reference == DETECTION:
        return detected, detected if detected is not None else run.injection.ended
    began, ended = run.injection.began, run.injection.ended
    return (began if fault.reference == BEGIN else ended), ended


def _first_right(calls: Sequence[Call], sent_after: float, begin: float) -> float | None:
    """Return the seconds until callers of every protocol had a right answer to a call that was sent after a time; None without."""
    firsts: dict[str, float] = {}
    for call in calls:
        if call.verdict == RIGHT and call.sent >= sent_after:
            firsts[call.protocol] = min(call.arrived, firsts.get(call.protocol, call.arrived))
    protocols = {call.protocol for call in calls}
    return max(firsts.values()) - begin if protocols and set(firsts) == protocols else None


def _rate_kept(calls: Sequence[Call], began: float, ended: float) -> float | None:
    """Return the correct answers per second during a fault, as a fraction of those before; None if either time is too short."""
    first = min((call.sent for call in calls), default=began)
    if min(ended - began, began - first) < _LEAST_S:
        return None
    right = [call.arrived for call in calls if call.verdict == RIGHT]
    before, during = (sum(start <= at < end for at in right) / (end - start) for start, end in ((first, began), (began, ended)))
    return during / before if before else None


def _longest_gaps(calls: Sequence[Call], began: float, stopped: float) -> dict[str, float]:
    """Return the longest time without a right answer from the begin of the fault, by protocol."""
    gaps = {}
    for protocol in sorted({call.protocol for call in calls}):
        arrived = sorted(call.arrived for call in calls if (call.protocol, call.verdict) == (protocol, RIGHT))
        times = [max((time for time in arrived if time <= began), default=began), *(time for time in arrived if time > began), stopped]
        gaps[protocol] = max((after - before for before, after in itertools.pairwise(times)), default=0.0)
    return gaps


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numeric facts of an event; the last lines of a log are long and contain paths."""
    return {key: facts[key] for key in ("status", "uptime_s", "outage_s", "restart_in_s") if key in facts}


def _texts(texts: Any) -> dict[str, Any]:
    """Return the number of texts, and the first different ones."""
    counted = Counter(texts)
    return {"n": sum(counted.values()), "first": [text for text, _ in counted.most_common(_TEXTS)]}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
