"""Compute the result and its figures from a run. The functions are pure."""

from __future__ import annotations

import signal
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.aborting.giving_up import ABORTED, ANSWERED, PLAIN, REFUSED, WRONG, Outcome
from benchmarks.aborting.patient import LOST, RIGHT, PatientCall
from benchmarks.aborting.under_aborts import Run
from benchmarks.common.figures import Figure, percentiles, zero_figure
from benchmarks.common.watching import Observations, find_outages, find_silences
from defensemble_server import ServerEvent

SILENCE_S = 0.5
_TEXTS = 10


def build_result(run: Run) -> dict[str, Any]:
    """Return the run as JSON, without the machine."""
    result = {
        "aborts": {protocol: _aborts(run.outcomes, protocol, kinds) for protocol, kinds in run.planned.items()},
        "not_given_up": {protocol: _plain(run.outcomes, protocol) for protocol in run.planned},
        "patient": _patient(run.calls, [outcome.detail for outcome in run.outcomes if outcome.how == WRONG]),
        "availability": _availability(run),
        "memory": _memory(run.watch, run.began),
        "left_behind": run.left,
        "seconds": round(run.ended - run.began, 1),
    }
    return {**result, "figures": compute_figures(result)}


def compute_figures(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compute the figures."""
    patient = result["patient"]
    kinds = [kind for kinds in result["aborts"].values() for kind in kinds.values()]

    def expect_zero(value: int) -> Figure:
        return zero_figure(value, measured=patient["right"] > 0)

    return {
        "wrong_answers": expect_zero(patient["wrong"]["n"] + patient["wrong_to_others"]["n"]),
        "lost_calls": expect_zero(patient["lost"]["n"]),
        "aborts_not_made": expect_zero(sum(kind["planned"] - kind["made"] for kind in kinds)),
        "left_behind": expect_zero(len(result["left_behind"])),
    }


def _aborts(outcomes: Sequence[Outcome], protocol: str, planned: Mapping[str, int]) -> dict[str, Any]:
    """Summarise each kind: aborts before and after the response both count; calls that the server refused were repeated."""
    result = {}
    for kind, count in planned.items():
        selected = [outcome for outcome in outcomes if (outcome.protocol, outcome.kind) == (protocol, kind)]
        aborted = [outcome for outcome in selected if outcome.how == ABORTED]
        refused = sum(outcome.how == REFUSED for outcome in selected)
        result[kind] = {
            "planned": count,
            "made": len(selected) - refused,
            "aborted": len(aborted),
            "answered_first": sum(outcome.how in (ANSWERED, WRONG) for outcome in selected),
            "calls_in_flight": sum(outcome.calls for outcome in aborted),
            "after_ms": percentiles(outcome.seconds for outcome in aborted),
            "refused_and_repeated": refused,
        }
    return result


def _plain(outcomes: Sequence[Outcome], protocol: str) -> dict[str, Any]:
    selected = [outcome for outcome in outcomes if (outcome.protocol, outcome.kind) == (protocol, PLAIN)]
    return {
        "answered_ms": percentiles(outcome.seconds for outcome in selected if outcome.how == PLAIN),
        "refused": sum(outcome.how == REFUSED for outcome in selected),
    }


def _patient(calls: Sequence[PatientCall], wrong_to_others: Sequence[str]) -> dict[str, Any]:
    def calls_with(verdict: str) -> dict[str, Any]:
        return _texts(f"call {call.number} of caller {call.caller}: {call.detail}" for call in calls if call.verdict == verdict)

    failures = [failure for call in calls for failure in call.failures]
    return {
        "calls": len(calls),
        "right": sum(call.verdict == RIGHT for call in calls),
        "wrong": calls_with(WRONG),
        "lost": calls_with(LOST),
        "wrong_to_others": _texts(wrong_to_others),
        "calls_that_were_repeated": sum(bool(call.failures) for call in calls),
        "failed_attempts": dict(Counter(failure.partition(":")[0] for failure in failures).most_common()),
        "failures": _texts(dict.fromkeys(failures)),
        "answered_ms": {
            protocol: percentiles(call.arrived - call.began for call in calls if (call.protocol, call.verdict) == (protocol, RIGHT))
            for protocol in sorted({call.protocol for call in calls})
        },
    }


def _availability(run: Run) -> dict[str, Any]:
    right = [call for call in run.calls if call.verdict == RIGHT]
    outages = find_outages(run.watch.deaths, [(call.sent, call.arrived) for call in right])
    silences = find_silences([call.arrived for call in right], run.began, run.ended, SILENCE_S)
    ends = [run.ended if outage.ended is None else outage.ended for outage in outages]
    seconds = [end - outage.began for end, outage in zip(ends, outages, strict=True)]
    silent = [end - (run.began if outage.silent_since is None else outage.silent_since) for end, outage in zip(ends, outages, strict=True)]
    return {
        "deaths": len(run.watch.deaths),
        "restarts": len(run.watch.starts) - 1,
        "exit_status": run.exit_status,
        "causes": dict(Counter(_cause(event) for event in run.events if event.is_fault).most_common()),
        "events": [{"at_s": round(event.time - run.events[0].time, 1), "kind": event.kind, **_facts(event)} for event in run.events],
        "outages": [
            {
                "at_s": round(outage.began - run.began, 3),
                "deaths": outage.deaths,
                "seconds": None if outage.ended is None else round(seconds_down, 3),
                "silent_seconds": None if outage.ended is None else round(silent_s, 3),
            }
            for outage, seconds_down, silent_s in zip(outages, seconds, silent, strict=True)
        ],
        "outage_seconds": _totals(seconds),
        "silent_seconds": _totals(silent),
        "silences": {
            "least_s": SILENCE_S,
            "n": len(silences),
            "without_a_death": sum(not any(begin <= death <= end for death in run.watch.deaths) for begin, end in silences),
            "longest_s": round(max((end - begin for begin, end in silences), default=0.0), 3),
        },
    }


def _cause(event: ServerEvent) -> str:
    status = event.facts.get("status")
    return f"{event.kind}, {signal.Signals(-status).name}" if status is not None and status < 0 else event.kind


def _facts(event: ServerEvent) -> dict[str, Any]:
    """Return the numeric facts of an event; the last lines of a log are long and contain paths."""
    return {key: event.facts[key] for key in ("status", "uptime_s", "outage_s", "restart_in_s") if key in event.facts}


def _memory(watch: Observations, began: float) -> list[dict[str, Any]]:
    """Summarise each Triton process: its first and last sample, and the maxima."""
    lives = []
    for pid in dict.fromkeys(sample.pid for sample in watch.samples):
        selected = [sample for sample in watch.samples if sample.pid == pid]
        lives.append(
            {
                "at_s": [round(sample.at - began, 1) for sample in (selected[0], selected[-1])],
                "pss_bytes": [selected[0].pss_bytes, selected[-1].pss_bytes],
                "most_pss_bytes": max(sample.pss_bytes for sample in selected),
                "open_files": [selected[0].open_files, selected[-1].open_files],
                "most_open_files": max(sample.open_files for sample in selected),
            }
        )
    return lives


def _totals(seconds: Sequence[float]) -> dict[str, Any]:
    if not seconds:
        return {"total": 0.0, "median": None, "longest": None}
    return {"total": round(sum(seconds), 3), "median": round(statistics.median(seconds), 3), "longest": round(max(seconds), 3)}


def _texts(texts: Iterable[str]) -> dict[str, Any]:
    """Return the number of texts, and the first ten."""
    all_texts = list(texts)
    return {"n": len(all_texts), "first": all_texts[:_TEXTS]}
