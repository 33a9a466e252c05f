"""Compute the result and its figures from a run. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.figures import at_most_figure, percentiles, zero_figure
from benchmarks.editing.answers import Call, Verdict
from benchmarks.editing.trace import trace_json
from benchmarks.editing.under_load import PROTOCOLS, AppliedChange, Run, protocol_of

P99_GOAL, WORK_GOAL_S, EDIT_GOAL, MEMORY_GOAL = 1.5, 0.045, 3.0, 0.05
KINDS = ("checks", "writes", "loads", "inferences", "drain")
GENERATED = ("average_", "uncertainty_")
_SAMPLES = 500
_TEXTS = 10


def split_calls(
    calls: Sequence[Call], made: Sequence[AppliedChange], began: float, ended: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the durations of calls in seconds: those that overlap each edit, and those in each interval between edits.

    A call that only starts or ends within an edit counts as during it. Calls that are not within `began` and `ended` are ignored.
    """
    during: list[list[float]] = [[] for _ in made]
    without: list[list[float]] = [[] for _ in range(len(made) + 1)]
    for call in calls:
        if call.answer is None or call.sent < began or call.arrived > ended:
            continue
        overlapped = [index for index, edit in enumerate(made) if edit.begin <= call.arrived and call.sent <= edit.end]
        for index in overlapped:
            during[index].append(call.arrived - call.sent)
        if not overlapped:
            without[sum(edit.end < call.sent for edit in made)].append(call.arrived - call.sent)
    return during, without


def latencies(calls: Sequence[Call], made: Sequence[AppliedChange], began: float, ended: float) -> dict[str, Any]:
    """Return the durations of calls during and without edits, and the ratio of their 99th percentiles.

    The 95 % interval is a bootstrap over edits and over the intervals between them, because the calls of one edit are not independent.
    """
    during, without = split_calls(calls, made, began, ended)
    result: dict[str, Any] = {"during": _calls(during), "without": _calls(without)}
    result["seconds_with"] = round(sum(edit.end - edit.begin for edit in made), 3)
    result["seconds_without"] = round(ended - began - result["seconds_with"], 3)
    during_p99, without_p99 = (result[which]["p99_ms"] for which in ("during", "without"))
    result["p99_during_by_without"] = None if during_p99 is None or without_p99 is None else round(during_p99 / without_p99, 4)
    result["p99_interval"] = _interval(during, without)
    result["by_protocol"] = {}
    for protocol in PROTOCOLS:
        protocol_calls = split_calls([call for call in calls if protocol_of(call.caller) == protocol], made, began, ended)
        result["by_protocol"][protocol] = {which: _calls(times) for which, times in zip(("during", "without"), protocol_calls, strict=True)}
    return result


def _calls(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    return percentiles((duration for group in groups for duration in group), "_ms")


def _interval(during: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> list[float] | None:
    during_p99, without_p99 = ([np.array(group) for group in groups if group] for groups in (during, without))
    if not during_p99 or not without_p99:
        return None
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(_SAMPLES):
        tails = [
            np.percentile(np.concatenate([groups[index] for index in generator.integers(len(groups), size=len(groups))]), 99)
            for groups in (during_p99, without_p99)
        ]
        ratios.append(tails[0] / tails[1])
    return [round(float(bound), 4) for bound in np.percentile(ratios, (2.5, 97.5))]


def edit_json(made: AppliedChange, memory: Sequence[int]) -> dict[str, Any]:
    """Return an edit as JSON; `memory` are the readings after it."""
    loaded = sorted({model for models in made.applied.loaded.values() for model in models})
    seconds = {kind: round(made.applied.seconds.get(kind, 0.0), 5) for kind in (*KINDS, "total")}
    return {
        "action": made.change.action,
        "changes": list(made.applied.changes),
        "votes": len(made.change.state.members),
        "members_loaded": [model for model in loaded if not model.startswith(GENERATED)],
        "unloaded": sorted({model for models in made.applied.unloaded.values() for model in models}),
        "left_loaded": dict(made.applied.left_loaded),
        "seconds": seconds,
        "own_work_s": round(seconds["writes"] + seconds["loads"], 5),
        "pss_bytes_after": int(statistics.median(memory)),
    }


def edits_without_member_loads(edits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the edits that loaded no member."""
    return [edit for edit in edits if not edit["members_loaded"]]


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON, with the first ten texts of each kind."""
    return {
        "calls": verdict.calls,
        "failed": {"n": len(verdict.failed), "first": verdict.failed[:_TEXTS]},
        "wrong": {"n": len(verdict.wrong), "first": verdict.wrong[:_TEXTS]},
        "old_after_new": {"n": len(verdict.stale), "first": verdict.stale[:_TEXTS]},
        "while_two_states_were_in_force": verdict.between,
        "by_state": {str(state): verdict.by_state[state] for state in sorted(verdict.by_state)},
        "largest_difference": verdict.largest_difference,
    }


def build_result(run: Run, verdict: Verdict, timed: int, memory_after: tuple[int, int]) -> dict[str, Any]:
    """Return the run as JSON, without the machine."""
    last = run.made[timed].begin if timed < len(run.made) else run.ended
    edits = [edit_json(made, memory) for made, memory in zip(run.made, run.memory[1:], strict=True)]
    without_loads = [(made.begin, made.end) for made, edit in zip(run.made, edits, strict=True) if not edit["members_loaded"]]
    early, late = (statistics.median(run.memory[number]) for number in memory_after)
    result = {
        "answers": verdict_json(verdict),
        "calls": latencies(run.calls, run.made[:timed], run.began, last),
        "edits": edits,
        "trace": trace_json(run.events, without_loads),
        "memory": {
            "after_edits": list(memory_after),
            "pss_bytes_before": int(statistics.median(run.memory[0])),
            "pss_bytes": [int(early), int(late)],
            "readings": [run.memory[number] for number in memory_after],
            "ratio": round(late / early, 4),
        },
    }
    return {**result, "figures": compute_figures(result)}


def compute_figures(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compute the figures. A value that could not be measured is None, and misses its goal."""
    answers, calls = result["answers"], result["calls"]
    edits = edits_without_member_loads(result["edits"])
    work = statistics.median(edit["own_work_s"] for edit in edits) if edits else None
    total_s = statistics.median(edit["seconds"]["total"] for edit in edits) if edits else None
    call_ms = calls["without"]["p50_ms"]
    by_call = None if total_s is None or call_ms is None else round(1000 * total_s / call_ms, 3)
    has_calls = answers["calls"] > 0

    ratio = result["memory"]["ratio"]
    return {
        "failed_requests": zero_figure(answers["failed"]["n"], measured=has_calls),
        "wrong_answers": zero_figure(answers["wrong"]["n"], measured=has_calls),
        "old_answers_after_new": zero_figure(answers["old_after_new"]["n"], measured=has_calls),
        "p99_during_edits_by_without": at_most_figure(calls["p99_during_by_without"], P99_GOAL),
        "own_work_of_an_edit_s": at_most_figure(work, WORK_GOAL_S),
        "edit_by_call": at_most_figure(by_call, EDIT_GOAL),
        "memory_late_by_early": {
            "value": ratio,
            "goal": f"within {100 * MEMORY_GOAL:g} %",
            "holds": 1 - MEMORY_GOAL <= ratio <= 1 + MEMORY_GOAL,
        },
    }
