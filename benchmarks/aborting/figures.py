"""From what happened to the figures that must hold: pure."""

from __future__ import annotations

import signal
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.aborting.giving_up import ABORTED, ANSWERED, PLAIN, REFUSED, WRONG, Outcome
from benchmarks.aborting.patient import LOST, RIGHT, PatientCall
from benchmarks.aborting.under_aborts import Run
from benchmarks.aborting.watching import Watch, outages, silences
from benchmarks.common.figures import Figure, percentiles, zero
from defensemble_server import ServerEvent

SILENCE_S = 0.5
_TEXTS = 10


def result_of(run: Run) -> dict[str, Any]:
    """The run as JSON, without its surroundings."""
    told = {
        "aborts": {protocol: _aborts(run.outcomes, protocol, kinds) for protocol, kinds in run.planned.items()},
        "not_given_up": {protocol: _plain(run.outcomes, protocol) for protocol in run.planned},
        "patient": _patient(run.calls, [one.detail for one in run.outcomes if one.how == WRONG]),
        "availability": _availability(run),
        "memory": _memory(run.watch, run.began),
        "left_behind": run.left,
        "seconds": round(run.ended - run.began, 1),
    }
    return {**told, "figures": figures_of(told)}


def figures_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures that were asked for."""
    patient = result["patient"]
    kinds = [kind for kinds in result["aborts"].values() for kind in kinds.values()]

    def none_of(value: int) -> Figure:
        return zero(value, measured=patient["right"] > 0)

    return {
        "wrong_answers": none_of(patient["wrong"]["n"] + patient["wrong_to_others"]["n"]),
        "lost_calls": none_of(patient["lost"]["n"]),
        "aborts_not_made": none_of(sum(kind["planned"] - kind["made"] for kind in kinds)),
        "left_behind": none_of(len(result["left_behind"])),
    }


def _aborts(outcomes: Sequence[Outcome], protocol: str, planned: Mapping[str, int]) -> dict[str, Any]:
    """Of each kind: those given up before their answer and those answered first make those that count; what was refused was repeated."""
    told = {}
    for kind, count in planned.items():
        own = [one for one in outcomes if (one.protocol, one.kind) == (protocol, kind)]
        aborted = [one for one in own if one.how == ABORTED]
        refused = sum(one.how == REFUSED for one in own)
        told[kind] = {
            "planned": count,
            "made": len(own) - refused,
            "aborted": len(aborted),
            "answered_first": sum(one.how in (ANSWERED, WRONG) for one in own),
            "calls_in_flight": sum(one.calls for one in aborted),
            "after_ms": percentiles(one.seconds for one in aborted),
            "refused_and_repeated": refused,
        }
    return told


def _plain(outcomes: Sequence[Outcome], protocol: str) -> dict[str, Any]:
    own = [one for one in outcomes if (one.protocol, one.kind) == (protocol, PLAIN)]
    return {"answered_ms": percentiles(one.seconds for one in own if one.how == PLAIN), "refused": sum(one.how == REFUSED for one in own)}


def _patient(calls: Sequence[PatientCall], wrong_to_others: Sequence[str]) -> dict[str, Any]:
    def some(verdict: str) -> dict[str, Any]:
        return _texts(f"call {one.number} of caller {one.caller}: {one.detail}" for one in calls if one.verdict == verdict)

    failures = [failure for one in calls for failure in one.failures]
    return {
        "calls": len(calls),
        "right": sum(one.verdict == RIGHT for one in calls),
        "wrong": some(WRONG),
        "lost": some(LOST),
        "wrong_to_others": _texts(wrong_to_others),
        "calls_that_were_repeated": sum(bool(one.failures) for one in calls),
        "failed_attempts": dict(Counter(failure.partition(":")[0] for failure in failures).most_common()),
        "failures": _texts(dict.fromkeys(failures)),
        "answered_ms": {
            protocol: percentiles(one.arrived - one.began for one in calls if (one.protocol, one.verdict) == (protocol, RIGHT))
            for protocol in sorted({one.protocol for one in calls})
        },
    }


def _availability(run: Run) -> dict[str, Any]:
    right = [one for one in run.calls if one.verdict == RIGHT]
    found = outages(run.watch.deaths, [(one.sent, one.arrived) for one in right])
    quiet = silences([one.arrived for one in right], run.began, run.ended, SILENCE_S)
    ends = [run.ended if outage.ended is None else outage.ended for outage in found]
    seconds = [end - outage.began for end, outage in zip(ends, found, strict=True)]
    silent = [end - (run.began if outage.silent_since is None else outage.silent_since) for end, outage in zip(ends, found, strict=True)]
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
                "seconds": None if outage.ended is None else round(took, 3),
                "silent_seconds": None if outage.ended is None else round(quiet_for, 3),
            }
            for outage, took, quiet_for in zip(found, seconds, silent, strict=True)
        ],
        "outage_seconds": _totals(seconds),
        "silent_seconds": _totals(silent),
        "silences": {
            "least_s": SILENCE_S,
            "n": len(quiet),
            "without_a_death": sum(not any(begin <= death <= end for death in run.watch.deaths) for begin, end in quiet),
            "longest_s": round(max((end - begin for begin, end in quiet), default=0.0), 3),
        },
    }


def _cause(event: ServerEvent) -> str:
    status = event.facts.get("status")
    return f"{event.kind}, {signal.Signals(-status).name}" if status is not None and status < 0 else event.kind


def _facts(event: ServerEvent) -> dict[str, Any]:
    """Those that are numbers; the last lines of a log are long and name folders."""
    return {key: event.facts[key] for key in ("status", "uptime_s", "outage_s", "restart_in_s") if key in event.facts}


def _memory(watch: Watch, began: float) -> list[dict[str, Any]]:
    """Each process of Triton at the first and the last look."""
    lives = []
    for pid in dict.fromkeys(sample.pid for sample in watch.samples):
        own = [sample for sample in watch.samples if sample.pid == pid]
        lives.append(
            {
                "at_s": [round(sample.at - began, 1) for sample in (own[0], own[-1])],
                "pss_bytes": [own[0].pss_bytes, own[-1].pss_bytes],
                "most_pss_bytes": max(sample.pss_bytes for sample in own),
                "open_files": [own[0].open_files, own[-1].open_files],
                "most_open_files": max(sample.open_files for sample in own),
            }
        )
    return lives


def _totals(seconds: Sequence[float]) -> dict[str, Any]:
    if not seconds:
        return {"total": 0.0, "median": None, "longest": None}
    return {"total": round(sum(seconds), 3), "median": round(statistics.median(seconds), 3), "longest": round(max(seconds), 3)}


def _texts(texts: Iterable[str]) -> dict[str, Any]:
    """How many there are, and the first ten."""
    every = list(texts)
    return {"n": len(every), "first": every[:_TEXTS]}
