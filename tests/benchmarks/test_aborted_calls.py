"""The benchmark of aborted calls: what it draws, what it calls wrong, lost or an outage, when a figure holds, and a tenth of a real run."""

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
from benchmarks.aborting.figures import result_of
from benchmarks.aborting.giving_up import ABORTED, ANSWERED, PLAIN, REFUSED, WRONG, Outcome, Pace
from benchmarks.aborting.oracle import mistake
from benchmarks.aborting.page import page
from benchmarks.aborting.patient import LOST, RIGHT, WRONG as WRONG_TO_PATIENT, Patient, PatientCall
from benchmarks.aborting.plan import ABORTS, BATCHES, LATEST, OUTPUTS, WANTED, planned, scaled
from benchmarks.aborting.under_aborts import Effort, Run
from benchmarks.aborting.watching import Outage, Sample, Watch, left_behind, outages, shared_memory, silences, watching
from benchmarks.common.answers import right_answers
from benchmarks.common.figures import exit_status
from defensemble_server import Server, ServerEvent
from tests.support import tiny
from tests.support.facts import assert_facts

POOL = 8
LOGITS = np.stack([tiny.logits(seed, tiny.images(POOL)) for seed in (1, 2, 3)])
ANSWERS = right_answers(LOGITS)
ROWS = np.array([4, 1, 5])


# What is drawn


def test_a_full_run_is_what_was_asked_for() -> None:
    assert ABORTS["grpc"] == {"deadline": 10_000, "cancel": 10_000, "close": 1_000, "kill": 300}
    assert ABORTS["http"] == {"expire": 10_000, "close": 1_000, "kill": 300}
    assert scaled(1) == {protocol: dict(kinds) for protocol, kinds in ABORTS.items()}
    assert scaled(0.1)["grpc"] == {"deadline": 1_000, "cancel": 1_000, "close": 100, "kill": 30}
    assert min(count for kinds in scaled(1e-6).values() for count in kinds.values()) == 1


def test_aborts_are_drawn_from_the_seed_and_cover_the_life_of_a_call() -> None:
    counts = {"deadline": 200, "cancel": 100, "close": 50, "kill": 10}
    drawn = planned("grpc", counts, 3)
    assert drawn == planned("grpc", counts, 3) != planned("grpc", counts, 4)
    assert Counter(abort.kind for abort in drawn) == counts
    moments = np.array([abort.moment for abort in drawn])
    assert 0 <= moments.min() < 0.01
    assert LATEST - 0.1 < moments.max() < LATEST
    assert 0.08 < np.mean(moments < 0.05) < 0.3
    assert {abort.batch for abort in drawn} == set(BATCHES)
    assert {abort.wanted for abort in drawn} == set(WANTED)
    assert {abort.in_flight for abort in drawn if abort.kind in ("close", "kill")} == set(range(2, 9))
    assert {abort.in_flight for abort in drawn if abort.kind in ("deadline", "cancel")} == {1}


def test_moments_follow_what_a_call_takes_at_present() -> None:
    pace = Pace()
    for seconds in (9.0, *[0.1] * 31, 0.3):
        pace.add(seconds)
    assert pace.after(0.5) == pytest.approx(0.05)
    assert pace.after(0.0) == 0.0002


# What is right


def test_the_right_answers_are_those_of_the_definition() -> None:
    for image in range(POOL):
        members = [tiny.softmax(logits[image]) for logits in LOGITS]
        mean = np.mean(members, axis=0)
        nats = [-sum(share * np.log(share) for share in one) for one in (mean, *members)]
        assert ANSWERS["probabilities"][image] == pytest.approx(mean, abs=1e-12)
        assert ANSWERS["member_probabilities"][image] == pytest.approx(np.array(members), abs=1e-12)
        assert ANSWERS["entropy"][image] == pytest.approx(nats[0], abs=1e-12)
        assert ANSWERS["mutual_information"][image] == pytest.approx(nats[0] - np.mean(nats[1:]), abs=1e-12)


def answer(*names: str) -> dict[str, Any]:
    """As a server gives it: entropies may have one column."""
    return {name: ANSWERS[name][ROWS].astype(np.float32).reshape(len(ROWS), *ANSWERS[name].shape[1:] or (1,)) for name in names}


@pytest.mark.parametrize("wanted", WANTED)
def test_a_right_answer_has_no_mistake(wanted: tuple[str, ...]) -> None:
    assert mistake(answer(*(wanted or OUTPUTS)), ANSWERS, ROWS, wanted) is None


@pytest.mark.parametrize(
    ("bad", "fact"),
    [
        ({"probabilities": answer("probabilities")["probabilities"] + 2e-5}, "2e-05"),
        ({"probabilities": answer("probabilities")["probabilities"] * np.nan}, "inf"),
        ({"probabilities": answer("probabilities")["probabilities"][::-1]}, "probabilities"),
        ({"probabilities": answer("probabilities")["probabilities"][:2]}, "(2, 3)"),
        ({"probabilities": answer("probabilities")["probabilities"][:, :2]}, "(3, 2)"),
        (answer("entropy"), "entropy"),
        (answer("probabilities", "entropy"), "entropy"),
        ({}, "none"),
    ],
)
def test_a_mistake_is_found(bad: dict[str, Any], fact: str) -> None:
    assert fact in str(mistake(bad, ANSWERS, ROWS, ("probabilities",)))


# What is an outage


def test_an_outage_ends_with_the_first_right_answer_that_was_sent_after_the_death() -> None:
    right = [(1.0, 1.1), (9.9, 10.2), (10.5, 11.0), (10.6, 10.9), (12.0, 12.1)]
    assert outages([10.0], right) == [Outage(1.1, 10.0, 1, 10.9)]
    assert outages([], right) == []
    assert outages([0.5], right[:1]) == [Outage(None, 0.5, 1, 1.1)]
    assert outages([12.05], right) == [Outage(11.0, 12.05, 1, None)]


def test_deaths_before_the_end_of_an_outage_belong_to_it() -> None:
    right = [(0.5, 0.6), (4.0, 4.5), (6.0, 6.1)]
    assert outages([3.0, 1.0, 5.0], right) == [Outage(0.6, 1.0, 2, 4.5), Outage(4.5, 5.0, 1, 6.1)]
    # An answer that arrives after a second death may have been sent before it.
    assert outages([1.0, 4.2], right) == [Outage(0.6, 1.0, 2, 6.1)]
    assert outages([7.0, 8.0], right) == [Outage(6.1, 7.0, 2, None)]


def test_silences_are_times_without_an_answer() -> None:
    assert silences([2.0, 1.0, 4.0, 99.0], 0.0, 10.0, 1.5) == [(2.0, 4.0), (4.0, 10.0)]
    assert silences([], 0.0, 10.0, 1.5) == [(0.0, 10.0)]


# Real calls


def called(url: str, right: Mapping[str, tiny.Array], patience_s: float) -> PatientCall:
    """The first call of a patient caller."""
    stop: Any = threading.Event()  # all in this process
    patient = Patient(url, (0,), "ensemble", tiny.images(POOL), right, 0, patience_s)
    return patient.work(stop, stop.set)[0]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_patient_caller_compares_what_a_server_answers(triton: Server, protocol: str) -> None:
    url = triton.grpc_url if protocol == "grpc" else triton.http_url
    logits = np.stack([tiny.logits(seed, tiny.images(POOL)) for seed in (1, 2, 2, 2)])  # the weights of its two members are 1 and 3
    right = right_answers(logits)
    right["member_probabilities"] = right["member_probabilities"][:, :2]
    call = called(url, right, 30.0)
    assert (call.protocol, call.verdict, call.detail, call.failures) == (protocol, RIGHT, "", ())
    assert call.began <= call.sent < call.arrived
    wrong = called(url, {name: values + 0.1 for name, values in right.items()}, 30.0)
    assert (wrong.verdict, "differs by 0.1" in wrong.detail) == (WRONG_TO_PATIENT, True)


def test_a_call_without_an_answer_is_repeated_and_then_lost() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens there
        call = called(f"http://127.0.0.1:{taken.getsockname()[1]}", ANSWERS, 0.2)
    assert (call.verdict, call.detail.partition(":")[0]) == (LOST, "ConnectionFailedError")
    assert len(call.failures) > 2
    assert 0.2 <= call.arrived - call.began < 30


def test_a_server_is_watched_from_outside(triton: Server) -> None:
    ports = [triton.state.http_port, triton.state.grpc_port]
    with watching(triton) as watch:
        deadline = time.monotonic() + 30
        while not watch.samples and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (len(watch.starts), watch.deaths, watch.gone.is_set()) == (1, [], False)
    assert (watch.samples[0].pid, watch.samples[0].pss_bytes > 10**6, watch.samples[0].open_files > 3) == (triton.triton_pid, True, True)
    found = left_behind(Path(triton.state.repository), ports, shared_memory())
    assert found == [f"process {triton.triton_pid}", *(f"port {port}" for port in ports)]


# When a figure holds

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


def a_result(calls: Sequence[PatientCall] = CALLS, outcomes: Sequence[Outcome] = OUTCOMES, left: Sequence[str] = ()) -> dict[str, Any]:
    """One death at 2.0 s of a run from 1.0 to 3.5 s."""
    watch = Watch([0.0, 2.3], [2.0], [Sample(0.5, 7, 10**8, 60), Sample(1.5, 7, 11 * 10**7, 80), Sample(2.5, 8, 10**8, 60)])
    return result_of(Run(COUNTS, list(outcomes), list(calls), watch, 1.0, 3.5, list(left), EVENTS, None, {}))


@pytest.mark.parametrize(
    ("missed", "result"),
    [
        ("", a_result()),
        ("wrong_answers", a_result([*CALLS, replace(CALLS[0], number=2, verdict=WRONG_TO_PATIENT, detail="off")])),
        ("wrong_answers", a_result(outcomes=[*OUTCOMES, Outcome("http", PLAIN, WRONG, 0.1, 1, "off")])),
        ("lost_calls", a_result([*CALLS, replace(CALLS[0], number=2, verdict=LOST, detail="gone")])),
        ("aborts_not_made", a_result(outcomes=OUTCOMES[:-1])),
        ("left_behind", a_result(left=["port 1"])),
    ],
)
def test_a_figure_that_does_not_hold_ends_with_status_1(missed: str, result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert [name for name, figure in figures.items() if not figure["holds"]] == ([missed] if missed else [])
    assert exit_status(figures) == (1 if missed else 0)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_no_right_answers_are_no_success() -> None:
    assert not any(figure["holds"] for figure in a_result([])["figures"].values())


def test_aborts_in_flight_and_late_ones_are_counted_apart_and_refused_ones_not() -> None:
    aborts = a_result()["aborts"]
    deadline = aborts["grpc"]["deadline"]
    assert [deadline[key] for key in ("planned", "made", "aborted", "answered_first", "refused_and_repeated")] == [2, 2, 1, 1, 1]
    assert (aborts["grpc"]["kill"]["calls_in_flight"], aborts["grpc"]["kill"]["after_ms"]["p50"]) == (4, 30.0)


def test_outages_and_failed_attempts_are_reported() -> None:
    result = a_result()
    found = result["availability"]
    assert (found["deaths"], found["restarts"]) == (1, 1)
    assert found["outage_seconds"] == {"total": 0.7, "median": 0.7, "longest": 0.7}
    assert found["silent_seconds"]["total"] == 1.6
    assert found["outages"] == [{"at_s": 1.0, "deaths": 1, "seconds": 0.7, "silent_seconds": 1.6}]
    assert (found["silences"]["n"], found["silences"]["without_a_death"], found["silences"]["longest_s"]) == (1, 0, 1.6)
    assert found["causes"] == {"died, SIGSEGV": 1}
    assert found["events"][1] == {"at_s": 1.0, "kind": "died", "status": -11, "uptime_s": 1.0, "restart_in_s": 0.0}
    assert result["patient"]["failed_attempts"] == {"ConnectionFailedError": 1, "NotReadyError": 1}
    assert result["patient"]["calls_that_were_repeated"] == 1
    assert [life["pss_bytes"] for life in result["memory"]] == [[10**8, 11 * 10**7], [10**8, 10**8]]
    ended = a_result(CALLS[:1])["availability"]
    assert (ended["outages"][0]["seconds"], ended["outage_seconds"]["total"]) == (None, 1.5)


# What is written


def whole(result: dict[str, Any], **values: Any) -> dict[str, Any]:
    """With all that the page shows of the surroundings."""
    about = {
        "quick": False,
        "note": None,
        "duration_s": 1.0,
        "seed": 0,
        "members": 3,
        "image_shape": [1, 4, 4],
        "patient_callers": 8,
        "effort": {"scale": 0.1},
        "tolerance": 1e-5,
        "measured_at": "2026-01-02T03:04:05+00:00",
        "hardware": {"cores": 2, "cpu": "a processor"},
        "versions": {"python": "3.11", "grpcio": "1.85"},
        "server": {"name": "triton", "version": "2.51.0"},
        "git_commit": "0123456789abcdef",
        "member_spec": {"arch": "resnet18", "width": 8},
    }
    return {**about, **result, **values}


def test_the_page_shows_what_the_result_holds() -> None:
    shown = page(whole(a_result()), "result.json")
    assert "[result.json](result.json)" in shown
    assert shown.count("| holds |") == 4
    assert "**missed**" not in shown
    assert_facts(shown, "1 deaths | 1 restarts | 0.7 s")
    assert "| grpc | caller killed | 1 | 1 | 1 | 4 | 0 | 30.0 | 0 |" in shown
    bad = page(whole(a_result(CALLS[:1], OUTCOMES[:1]), quick=True, note="Others worked."), "result.json")
    assert bad.count("**missed**") == 1
    assert "not ended" in bad
    assert "Others worked." in bad
    lost = page(whole(a_result([*CALLS, replace(CALLS[0], number=2, verdict=LOST, detail="gone")])), "result.json")
    assert_facts(lost, "lost | call 2 | caller 0 | gone")
    assert max(len(line) for text in (shown, bad, lost) for line in text.splitlines() if not line.startswith("|")) <= 250


def test_help_names_the_options() -> None:
    shown = CliRunner().invoke(main, ["--help"])
    assert shown.exit_code == 0
    for option in ("--json FILE", "--quick", "--scale", "--note", "--seed", "Examples:"):
        assert option in shown.output


# All of it


@pytest.mark.slow
def test_no_patient_caller_loses_a_call_while_thousands_are_given_up() -> None:
    """A tenth of a full run on a real Triton, of five linear networks."""
    members = [tiny.member(f"m{seed}", seed) for seed in range(5)]
    result = json.loads(json.dumps(measure(members, tiny.images(64), Effort(scale=0.1), seed=3), allow_nan=False))
    assert {name: figure["value"] for name, figure in result["figures"].items()} == dict.fromkeys(result["figures"], 0)
    assert exit_status(result["figures"]) == 0
    assert result["schema"] == SCHEMA == "defensemble.benchmark.aborted_calls/1"
    for protocol, kinds in result["aborts"].items():
        for kind, one in kinds.items():
            assert one["made"] == one["planned"] == round(0.1 * ABORTS[protocol][kind])
            assert one["aborted"] > 0, (protocol, kind)
    killed = result["aborts"]["grpc"]["kill"]
    assert killed["calls_in_flight"] > 1.5 * killed["aborted"]
    assert result["patient"]["right"] == result["patient"]["calls"] > 200
    found = result["availability"]
    assert found["restarts"] == found["deaths"] == sum(outage["deaths"] for outage in found["outages"])
    assert sum(found["causes"].values()) == found["deaths"]
    assert all(outage["seconds"] is not None for outage in found["outages"])
    assert threading.active_count() == 1
    assert page(whole(result), "result.json") == page(whole(result), "result.json")
