"""From what happened to the figures that must hold: pure, so that a test can tell what holds and what does not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.figures import at_most, percentiles, zero
from benchmarks.editing.answers import Call, Verdict
from benchmarks.editing.under_load import PROTOCOLS, Made, Run, protocol_of

P99_GOAL, WORK_GOAL_S, EDIT_GOAL, MEMORY_GOAL = 1.5, 0.1, 6.0, 0.05
KINDS = ("checks", "writes", "loads", "inferences", "drain")
GENERATED = ("average_", "uncertainty_")
_SAMPLES = 500
_TEXTS = 10


def split(calls: Sequence[Call], made: Sequence[Made], began: float, ended: float) -> tuple[list[list[float]], list[list[float]]]:
    """How long calls took, in seconds: those under way during each edit, and those in each while between, that touched none.

    A call that only ends or begins within an edit counts as one during it. What was not wholly between `began` and `ended` is left out.
    """
    during: list[list[float]] = [[] for _ in made]
    without: list[list[float]] = [[] for _ in range(len(made) + 1)]
    for call in calls:
        if call.answer is None or call.sent < began or call.arrived > ended:
            continue
        touched = [index for index, edit in enumerate(made) if edit.begin <= call.arrived and call.sent <= edit.end]
        for index in touched:
            during[index].append(call.arrived - call.sent)
        if not touched:
            without[sum(edit.end < call.sent for edit in made)].append(call.arrived - call.sent)
    return during, without


def latencies(calls: Sequence[Call], made: Sequence[Made], began: float, ended: float) -> dict[str, Any]:
    """Calls during edits and without, and the ratio of their 99th percentiles.

    Its interval (95 %) is by drawing edits, and whiles between them, anew with replacement: calls of one edit are not independent.
    """
    during, without = split(calls, made, began, ended)
    told: dict[str, Any] = {"during": _calls(during), "without": _calls(without)}
    told["seconds_with"] = round(sum(edit.end - edit.begin for edit in made), 3)
    told["seconds_without"] = round(ended - began - told["seconds_with"], 3)
    ours, theirs = (told[which]["p99_ms"] for which in ("during", "without"))
    told["p99_during_by_without"] = None if ours is None or theirs is None else round(ours / theirs, 4)
    told["p99_interval"] = _interval(during, without)
    told["by_protocol"] = {}
    for protocol in PROTOCOLS:
        own = split([call for call in calls if protocol_of(call.caller) == protocol], made, began, ended)
        told["by_protocol"][protocol] = {which: _calls(times) for which, times in zip(("during", "without"), own, strict=True)}
    return told


def _calls(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    return percentiles((took for group in groups for took in group), "_ms")


def _interval(during: Sequence[Sequence[float]], without: Sequence[Sequence[float]]) -> list[float] | None:
    ours, theirs = ([np.array(group) for group in groups if group] for groups in (during, without))
    if not ours or not theirs:
        return None
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(_SAMPLES):
        tails = [
            np.percentile(np.concatenate([groups[index] for index in generator.integers(len(groups), size=len(groups))]), 99)
            for groups in (ours, theirs)
        ]
        ratios.append(tails[0] / tails[1])
    return [round(float(bound), 4) for bound in np.percentile(ratios, (2.5, 97.5))]


def edit_told(made: Made, memory: Sequence[int]) -> dict[str, Any]:
    """An edit as JSON; `memory` are the readings after it."""
    loaded = sorted({model for models in made.applied.loaded.values() for model in models})
    seconds = {kind: round(made.applied.seconds.get(kind, 0.0), 5) for kind in (*KINDS, "total")}
    return {
        "action": made.change.action,
        "changes": list(made.applied.changes),
        "votes": len(made.change.state.votes),
        "members_loaded": [model for model in loaded if not model.startswith(GENERATED)],
        "unloaded": sorted({model for models in made.applied.unloaded.values() for model in models}),
        "left_loaded": dict(made.applied.left_loaded),
        "seconds": seconds,
        "own_work_s": round(seconds["writes"] + seconds["loads"], 5),
        "pss_bytes_after": int(statistics.median(memory)),
    }


def among_loaded(edits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The edits of weights, averages, or votes of which no member had to be loaded."""
    return [edit for edit in edits if not edit["members_loaded"]]


def verdict_told(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON, of each kind of fault the first ten."""
    return {
        "calls": verdict.calls,
        "failed": {"n": len(verdict.failed), "first": verdict.failed[:_TEXTS]},
        "wrong": {"n": len(verdict.wrong), "first": verdict.wrong[:_TEXTS]},
        "old_after_new": {"n": len(verdict.stale), "first": verdict.stale[:_TEXTS]},
        "while_two_states_were_in_force": verdict.between,
        "by_state": {str(state): verdict.by_state[state] for state in sorted(verdict.by_state)},
        "largest_difference": verdict.largest_difference,
    }


def result_of(run: Run, verdict: Verdict, timed: int, memory_after: tuple[int, int]) -> dict[str, Any]:
    """The run as JSON, without its surroundings."""
    last = run.made[timed].begin if timed < len(run.made) else run.ended
    edits = [edit_told(made, memory) for made, memory in zip(run.made, run.memory[1:], strict=True)]
    early, late = (statistics.median(run.memory[number]) for number in memory_after)
    told = {
        "answers": verdict_told(verdict),
        "calls": latencies(run.calls, run.made[:timed], run.began, last),
        "edits": edits,
        "memory": {
            "after_edits": list(memory_after),
            "pss_bytes_before": int(statistics.median(run.memory[0])),
            "pss_bytes": [int(early), int(late)],
            "readings": [run.memory[number] for number in memory_after],
            "ratio": round(late / early, 4),
        },
    }
    return {**told, "figures": figures_of(told)}


def figures_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures that were asked for; what could not be measured is None, and does not hold."""
    answers, calls = result["answers"], result["calls"]
    quick = among_loaded(result["edits"])
    work = statistics.median(edit["own_work_s"] for edit in quick) if quick else None
    whole = statistics.median(edit["seconds"]["total"] for edit in quick) if quick else None
    usual_ms = calls["without"]["p50_ms"]
    by_call = None if whole is None or usual_ms is None else round(1000 * whole / usual_ms, 3)
    answered = answers["calls"] > 0

    ratio = result["memory"]["ratio"]
    return {
        "failed_requests": zero(answers["failed"]["n"], measured=answered),
        "wrong_answers": zero(answers["wrong"]["n"], measured=answered),
        "old_answers_after_new": zero(answers["old_after_new"]["n"], measured=answered),
        "p99_during_edits_by_without": at_most(calls["p99_during_by_without"], P99_GOAL),
        "own_work_of_an_edit_s": at_most(work, WORK_GOAL_S),
        "edit_by_call": at_most(by_call, EDIT_GOAL),
        "memory_late_by_early": {
            "value": ratio,
            "goal": f"within {100 * MEMORY_GOAL:g} %",
            "holds": 1 - MEMORY_GOAL <= ratio <= 1 + MEMORY_GOAL,
        },
    }
