"""The benchmark of aborted calls: the aborts, the verdicts, outages, figures, and a tenth of a real run."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.aborted_calls import SCHEMA, main, measure
from benchmarks.aborting.figures import build_result
from benchmarks.aborting.giving_up import ABORTED, ANSWERED, PLAIN, REFUSED, WRONG, Outcome, Pace
from benchmarks.aborting.page import page
from benchmarks.aborting.patient import LOST, RIGHT, WRONG as WRONG_TO_PATIENT, PatientCall, PatientCallers
from benchmarks.aborting.plan import ABORTS, BATCHES, LATEST, OUTPUT_CHOICES, draw_aborts, scale_counts
from benchmarks.aborting.under_aborts import Effort, Run
from benchmarks.common.answers import expected_outputs
from benchmarks.common.figures import exit_status
from benchmarks.common.oracle import OUTPUTS, find_mistake
from benchmarks.common.watching import (
    Observations,
    Outage,
    Sample,
    find_leftovers,
    find_outages,
    find_silences,
    list_shared_memory,
    observe_server,
)
from defensemble_server import Server, ServerEvent
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.measured import RUN

POOL = 8
LOGITS = np.stack([tiny.logits(seed, tiny.images(POOL)) for seed in (1, 2, 3)])
EXPECTED = expected_outputs(LOGITS)
ROWS = np.array([4, 1, 5])


# Aborts


def test_a_full_run_has_the_planned_counts() -> None:
    assert ABORTS["grpc"] == {"deadline": 10_000, "cancel": 10_000, "close": 1_000, "kill": 300}
    assert ABORTS["http"] == {"expire": 10_000, "close": 1_000, "kill": 300}
    assert scale_counts(1) == {protocol: dict(kinds) for protocol, kinds in ABORTS.items()}
    assert scale_counts(0.1)["grpc"] == {"deadline": 1_000, "cancel": 1_000, "close": 100, "kill": 30}
    assert min(count for kinds in scale_counts(1e-6).values() for count in kinds.values()) == 1


def test_aborts_are_drawn_from_the_seed_and_cover_the_duration_of_a_call() -> None:
    counts = {"deadline": 200, "cancel": 100, "close": 50, "kill": 10}
    drawn = draw_aborts("grpc", counts, 3)
    assert drawn == draw_aborts("grpc", counts, 3) != draw_aborts("grpc", counts, 4)
    assert Counter(abort.kind for abort in drawn) == counts
    moments = np.array([abort.moment for abort in drawn])
    assert 0 <= moments.min() < 0.01
    assert LATEST - 0.1 < moments.max() < LATEST
    assert 0.08 < np.mean(moments < 0.05) < 0.3
    assert {abort.batch for abort in drawn} == set(BATCHES)
    assert {abort.outputs for abort in drawn} == set(OUTPUT_CHOICES)
    assert {abort.in_flight for abort in drawn if abort.kind in ("close", "kill")} == set(range(2, 9))
    assert {abort.in_flight for abort in drawn if abort.kind in ("deadline", "cancel")} == {1}


def test_moments_follow_the_current_duration_of_a_call() -> None:
    pace = Pace()
    for seconds in (9.0, *[0.1] * 31, 0.3):
        pace.add(seconds)
    assert pace.after(0.5) == pytest.approx(0.05)
    assert pace.after(0.0) == 0.0002


# Responses


def test_the_expected_outputs_follow_the_definition() -> None:
    for image in range(POOL):
        members = [tiny.softmax(logits[image]) for logits in LOGITS]
        mean = np.mean(members, axis=0)
        nats = [-sum(value * np.log(value) for value in probabilities) for probabilities in (mean, *members)]
        assert EXPECTED["probabilities"][image] == pytest.approx(mean, abs=1e-12)
        assert EXPECTED["member_probabilities"][image] == pytest.approx(np.array(members), abs=1e-12)
        assert EXPECTED["entropy"][image] == pytest.approx(nats[0], abs=1e-12)
        assert EXPECTED["mutual_information"][image] == pytest.approx(nats[0] - np.mean(nats[1:]), abs=1e-12)


def response(*names: str) -> dict[str, Any]:
    """Return a correct response: entropies may have one column."""
    return {name: EXPECTED[name][ROWS].astype(np.float32).reshape(len(ROWS), *EXPECTED[name].shape[1:] or (1,)) for name in names}


@pytest.mark.parametrize("outputs", OUTPUT_CHOICES)
def test_a_correct_response_has_no_mistake(outputs: tuple[str, ...]) -> None:
    assert find_mistake(response(*(outputs or OUTPUTS)), EXPECTED, ROWS, outputs) is None


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        ({"probabilities": response("probabilities")["probabilities"] + 2e-5}, "2e-05"),
        ({"probabilities": response("probabilities")["probabilities"] * np.nan}, "inf"),
        ({"probabilities": response("probabilities")["probabilities"][::-1]}, "probabilities"),
        ({"probabilities": response("probabilities")["probabilities"][:2]}, "(2, 3)"),
        ({"probabilities": response("probabilities")["probabilities"][:, :2]}, "(3, 2)"),
        (response("entropy"), "entropy"),
        (response("probabilities", "entropy"), "entropy"),
        ({}, "none"),
    ],
)
def test_a_mistake_is_found(bad: dict[str, Any], fact: str) -> None:
    assert fact in str(find_mistake(bad, EXPECTED, ROWS, ("probabilities",)))


# Outages


def test_an_outage_ends_with_the_first_correct_response_sent_after_the_death() -> None:
    right = [(1.0, 1.1), (9.9, 10.2), (10.5, 11.0), (10.6, 10.9), (12.0, 12.1)]
    assert find_outages([10.0], right) == [Outage(1.1, 10.0, 1, 10.9)]
    assert find_outages([], right) == []
    assert find_outages([0.5], right[:1]) == [Outage(None, 0.5, 1, 1.1)]
    assert find_outages([12.05], right) == [Outage(11.0, 12.05, 1, None)]


def test_deaths_before_the_end_of_an_outage_belong_to_it() -> None:
    right = [(0.5, 0.6), (4.0, 4.5), (6.0, 6.1)]
    assert find_outages([3.0, 1.0, 5.0], right) == [Outage(0.6, 1.0, 2, 4.5), Outage(4.5, 5.0, 1, 6.1)]
    # An answer that arrives after a second death may have been sent before it.
    assert find_outages([1.0, 4.2], right) == [Outage(0.6, 1.0, 2, 6.1)]
    assert find_outages([7.0, 8.0], right) == [Outage(6.1, 7.0, 2, None)]


def test_silences_are_intervals_without_a_response() -> None:
    assert find_silences([2.0, 1.0, 4.0, 99.0], 0.0, 10.0, 1.5) == [(2.0, 4.0), (4.0, 10.0)]
    assert find_silences([], 0.0, 10.0, 1.5) == [(0.0, 10.0)]


# Real calls


def first_call(url: str, right: Mapping[str, tiny.Array], patience_s: float) -> PatientCall:
    """Return the first call of a patient caller."""
    stop: Any = threading.Event()  # one process is enough here
    patient = PatientCallers(url, (0,), "ensemble", tiny.images(POOL), right, 0, patience_s)
    return patient.run(stop, stop.set)[0]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_patient_caller_checks_responses(triton: Server, protocol: str) -> None:
    url = triton.grpc_url if protocol == "grpc" else triton.http_url
    logits = np.stack([tiny.logits(seed, tiny.images(POOL)) for seed in (1, 2, 2, 2)])  # the weights of its two members are 1 and 3
    right = expected_outputs(logits)
    right["member_probabilities"] = right["member_probabilities"][:, :2]
    call = first_call(url, right, 30.0)
    assert (call.protocol, call.verdict, call.detail, call.failures) == (protocol, RIGHT, "", ())
    assert call.began <= call.sent < call.arrived
    wrong = first_call(url, {name: values + 0.1 for name, values in right.items()}, 30.0)
    assert (wrong.verdict, "differs by 0.1" in wrong.detail) == (WRONG_TO_PATIENT, True)


def test_a_call_without_a_response_is_repeated_and_then_lost() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        call = first_call(f"http://127.0.0.1:{taken.getsockname()[1]}", EXPECTED, 0.2)
    assert (call.verdict, call.detail.partition(":")[0]) == (LOST, "ConnectionFailedError")
    assert len(call.failures) > 2
    assert 0.2 <= call.arrived - call.began < 30


def test_a_server_is_observed_from_outside(triton: Server) -> None:
    ports = [triton.state.http_port, triton.state.grpc_port]
    with observe_server(triton) as watch:
        deadline = time.monotonic() + 30
        while not watch.samples and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (len(watch.starts), watch.deaths, watch.gone.is_set()) == (1, [], False)
    assert (watch.samples[0].pid, watch.samples[0].pss_bytes > 10**6, watch.samples[0].open_files > 3) == (triton.triton_pid, True, True)
    leftovers = find_leftovers(Path(triton.state.repository), ports, list_shared_memory())
    assert leftovers == [f"process {triton.triton_pid}", *(f"port {port}" for port in ports)]


# Figures

COUNTS = {"grpc": {"deadline": 2, "kill": 1}, "http": {"expire": 1}}
OUTCOMES = [
    Outcome("grpc", "deadline", ABORTED, 0.01),
    Outcome("grpc", "deadline", REFUSED, 0.01, 1, "ConnectionFailedError"),
    Outcome("grpc", "deadline", ANSWERED, 0.02, 0),
    Outcome("grpc", "kill", ABORTED, 0.03, 4),
    Outcome("grpc", PLAIN, PLAIN, 0.05),
    Outcome("http", "expire", ABORTED, 0.01),
]
CALLS = [
    PatientCall("grpc", 0, 0, 1.0, 1.0, 1.1, RIGHT),
    PatientCall("grpc", 0, 1, 2.0, 2.6, 2.7, RIGHT, failures=("ConnectionFailedError: x", "NotReadyError: y")),
    PatientCall("http", 4, 0, 2.9, 2.9, 3.1, RIGHT),
]
EVENTS = [
    ServerEvent(100.0, "started", 6, {"pid": 7}),
    ServerEvent(101.0, "died", 6, {"pid": 7, "status": -11, "uptime_s": 1.0, "last_lines": ["a line"], "restart_in_s": 0.0}),
    ServerEvent(101.3, "restarted", 6, {"pid": 8, "outage_s": 0.3}),
]


def result_with(calls: Sequence[PatientCall] = CALLS, outcomes: Sequence[Outcome] = OUTCOMES, left: Sequence[str] = ()) -> dict[str, Any]:
    """Return the result of a run from 1.0 to 3.5 s with one death at 2.0 s."""
    watch = Observations([0.0, 2.3], [2.0], [Sample(0.5, 7, 10**8, 60), Sample(1.5, 7, 11 * 10**7, 80), Sample(2.5, 8, 10**8, 60)])
    return build_result(Run(COUNTS, list(outcomes), list(calls), watch, 1.0, 3.5, list(left), EVENTS, None, {}))


@pytest.mark.parametrize(
    ("missed", "result"),
    [
        ("", result_with()),
        ("wrong_answers", result_with([*CALLS, replace(CALLS[0], number=2, verdict=WRONG_TO_PATIENT, detail="off")])),
        ("wrong_answers", result_with(outcomes=[*OUTCOMES, Outcome("http", PLAIN, WRONG, 0.1, 1, "off")])),
        ("lost_calls", result_with([*CALLS, replace(CALLS[0], number=2, verdict=LOST, detail="gone")])),
        ("aborts_not_made", result_with(outcomes=OUTCOMES[:-1])),
        ("left_behind", result_with(left=["port 1"])),
    ],
)
def test_a_missed_figure_ends_with_status_1(missed: str, result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert [name for name, figure in figures.items() if not figure["holds"]] == ([missed] if missed else [])
    assert exit_status(figures) == (1 if missed else 0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_without_correct_responses_all_figures_are_missed() -> None:
    assert not any(figure["holds"] for figure in result_with([])["figures"].values())


def test_late_aborts_are_counted_separately_and_failed_calls_are_not() -> None:
    aborts = result_with()["aborts"]
    deadline = aborts["grpc"]["deadline"]
    assert [deadline[key] for key in ("planned", "made", "aborted", "answered_first", "refused_and_repeated")] == [2, 2, 1, 1, 1]
    assert (aborts["grpc"]["kill"]["calls_in_flight"], aborts["grpc"]["kill"]["after_ms"]["p50"]) == (4, 30.0)


def test_outages_and_failed_attempts_are_reported() -> None:
    result = result_with()
    availability = result["availability"]
    assert (availability["deaths"], availability["restarts"]) == (1, 1)
    assert availability["outage_seconds"] == {"total": 0.7, "median": 0.7, "longest": 0.7}
    assert availability["silent_seconds"]["total"] == 1.6
    assert availability["outages"] == [{"at_s": 1.0, "deaths": 1, "seconds": 0.7, "silent_seconds": 1.6}]
    assert (availability["silences"]["n"], availability["silences"]["without_a_death"], availability["silences"]["longest_s"]) == (
        1,
        0,
        1.6,
    )
    assert availability["causes"] == {"died, SIGSEGV": 1}
    assert availability["events"][1] == {"at_s": 1.0, "kind": "died", "status": -11, "uptime_s": 1.0, "restart_in_s": 0.0}
    assert result["patient"]["failed_attempts"] == {"ConnectionFailedError": 1, "NotReadyError": 1}
    assert result["patient"]["calls_that_were_repeated"] == 1
    assert [life["pss_bytes"] for life in result["memory"]] == [[10**8, 11 * 10**7], [10**8, 10**8]]
    ended = result_with(CALLS[:1])["availability"]
    assert (ended["outages"][0]["seconds"], ended["outage_seconds"]["total"]) == (None, 1.5)


# The page


def complete(result: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Add the description of the machine, which the page needs."""
    description = {
        **RUN,
        "quick": False,
        "note": None,
        "members": 3,
        "image_shape": [1, 4, 4],
        "patient_callers": 8,
        "effort": {"scale": 0.1},
        "tolerance": 1e-5,
        "member_spec": {"arch": "resnet18", "width": 8},
    }
    return {**description, **result, **values}


def test_the_page_shows_the_result() -> None:
    text = page(complete(result_with()), "result.json")
    assert "[result.json](result.json)" in text
    assert text.count("| holds |") == 4
    assert "**missed**" not in text
    assert_facts(text, "1 deaths | 1 restarts | 0.7 s")
    assert "| grpc | caller killed | 1 | 1 | 1 | 4 | 0 | 30.0 | 0 |" in text
    bad = page(complete(result_with(CALLS[:1], OUTCOMES[:1]), quick=True, note="Others worked."), "result.json")
    assert bad.count("**missed**") == 1
    assert "not ended" in bad
    assert "Others worked." in bad
    lost = page(complete(result_with([*CALLS, replace(CALLS[0], number=2, verdict=LOST, detail="gone")])), "result.json")
    assert_facts(lost, "lost | call 2 | caller 0 | gone")
    assert max(len(line) for shown in (text, bad, lost) for line in shown.splitlines() if not line.startswith("|")) <= 250


def test_help_lists_the_options() -> None:
    text = CliRunner().invoke(main, ["--help"])
    assert text.exit_code == 0
    for option in ("--json FILE", "--quick", "--scale", "--note", "--seed", "Examples:"):
        assert option in text.output


# A real run


@pytest.mark.slow
def test_patient_callers_lose_no_call_while_thousands_are_aborted() -> None:
    """A tenth of a full run on a real Triton, with five linear networks."""
    threads_before = threading.enumerate()
    members = [tiny.member(f"m{seed}", seed) for seed in range(5)]
    result = json.loads(json.dumps(measure(members, tiny.images(64), Effort(scale=0.1), seed=3), allow_nan=False))
    assert {name: figure["value"] for name, figure in result["figures"].items()} == dict.fromkeys(result["figures"], 0)
    assert exit_status(result["figures"]) == 0
    assert result["schema"] == SCHEMA == "defensemble.benchmark.aborted_calls/1"
    for protocol, kinds in result["aborts"].items():
        for kind, counts in kinds.items():
            assert counts["made"] == counts["planned"] == round(0.1 * ABORTS[protocol][kind])
            assert counts["aborted"] > 0, (protocol, kind)
    killed = result["aborts"]["grpc"]["kill"]
    assert killed["calls_in_flight"] > 1.5 * killed["aborted"]
    assert result["patient"]["right"] == result["patient"]["calls"] > 200
    availability = result["availability"]
    assert availability["restarts"] == availability["deaths"] == sum(outage["deaths"] for outage in availability["outages"])
    assert sum(availability["causes"].values()) == availability["deaths"]
    assert all(outage["seconds"] is not None for outage in availability["outages"])
    assert [thread.name for thread in threading.enumerate() if thread not in threads_before] == []
    assert page(complete(result), "result.json") == page(complete(result), "result.json")
