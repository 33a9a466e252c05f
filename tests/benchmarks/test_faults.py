"""The fault table: traps, hostile requests, figures, the page, and each fault once under load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner

from benchmarks.common.answers import member_logits, session_from_onnx
from benchmarks.common.figures import exit_status
from benchmarks.faulting.bad_tensors import grpc_bad_tensors, http_bad_tensors
from benchmarks.faulting.callers import FAILED, REJECTED, RIGHT, WRONG, Call
from benchmarks.faulting.fault import ACCEPTED, BEGIN, CLOSED, DETECTION, END, REFUSED, Effort, Fault, Injection
from benchmarks.faulting.figures import build_row, compute_figures
from benchmarks.faulting.page import page
from benchmarks.faulting.raw import outcome_of
from benchmarks.faulting.requests import random_requests
from benchmarks.faulting.running import Cast, FaultRun, NotRunError, run_fault
from benchmarks.faulting.table import FAULTS, fault_by_name
from benchmarks.faulting.trap import FAILS, NotFoundError, bias_of, overwrite_memory, trap_image, trapped
from benchmarks.faults import main
from defensemble import ServerMetadata
from defensemble_server import ServerEvent
from tests.support import tiny
from tests.support.facts import assert_facts
from tests.support.measured import RUN

TINY = Effort(warm_s=0.3, flood_s=1.0, settle_s=0.3, patience_s=60.0, requests=20, slow_clients=500, closes=20, inflated_bytes=50_000_000)


@pytest.fixture(scope="module")
def cast() -> Cast:
    members = [trapped(tiny.member("m0", 0)), tiny.member("m1", 1), tiny.member("m2", 2)]
    pool = tiny.images(32)
    return Cast(members, member_logits(members, pool), pool, seed=3)


# What is injected


def test_a_trapped_member_computes_the_same_plus_its_bias(cast: Cast) -> None:
    expected = tiny.logits(0, cast.pool) + bias_of(cast.members[0])
    assert cast.logits[0] == pytest.approx(expected, abs=1e-5)
    session = session_from_onnx(cast.members[0].onnx)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(["logits"], {"images": trap_image(cast.pool, FAILS)})


def test_the_memory_of_a_process_is_overwritten() -> None:
    code = "value = bytearray(range(200, 240)); print(flush=True); input(); print(bytes(value).hex())"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert overwrite_memory(process.pid, {bytes(range(200, 240)): bytes(40)}) >= 1
        with pytest.raises(NotFoundError):
            overwrite_memory(process.pid, {bytes(range(200, 240)): bytes(40)})
        output, _ = process.communicate("\n", timeout=30)
    assert bytes.fromhex(output.strip()) == bytes(40)


def test_random_requests_follow_from_the_seed() -> None:
    ports = ["http", "grpc"]
    assert [*random_requests(ports, 5, 7)] == [*random_requests(ports, 5, 7)] != [*random_requests(ports, 5, 8)]
    assert Counter(name for name, _ in random_requests(ports, 5, 7)) == {"http": 5, "grpc": 5}


def test_bad_tensors_have_correct_heads(cast: Cast) -> None:
    requests = http_bad_tensors(cast.pool[:1])
    assert len(set(requests.values())) == len(requests)
    for request in requests.values():
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
    messages = grpc_bad_tensors(cast.pool[:1])
    assert len({message.SerializeToString(deterministic=True) for message in messages.values()}) == len(messages)


@pytest.mark.parametrize(
    ("received", "outcome"),
    [(b"HTTP/1.1 200 OK\r\n", ACCEPTED), (b"HTTP/1.1 400 Bad Request\r\n", REFUSED), (b"\x00\x00\x04\x07", REFUSED), (b"", CLOSED)],
)
def test_only_a_status_of_success_accepts_a_request(received: bytes, outcome: str) -> None:
    assert outcome_of(received) == outcome


# Figures

EPOCH = 1000.0
CALLS = [
    Call("grpc", 0, 0, 8.0, 8.5, RIGHT),
    Call("http", 2, 0, 8.0, 9.5, RIGHT),
    Call("grpc", 0, 1, 10.5, 10.6, FAILED, "ConnectionFailedError"),
    Call("grpc", 0, 2, 11.2, 11.5, RIGHT),
    Call("http", 2, 1, 11.2, 11.9, RIGHT),
]
EVENTS = [ServerEvent(EPOCH + 0.0, "started", 6, {"pid": 7}), ServerEvent(EPOCH + 10.8, "died", 6, {"pid": 7, "status": -9})]


def fault_with(reference: str = BEGIN, **values: Any) -> Fault:
    return Fault("killed", "an action", "an expectation", lambda stage: Injection(), reference, **values)


def run_with(calls: Sequence[Call] = CALLS, events: Sequence[ServerEvent] = EVENTS, **values: Any) -> FaultRun:
    """Return the run of a fault from 10 to 11 s, whose callers stopped at 13 s."""
    known: dict[str, Any] = {
        "injection": Injection(10.0, 11.0, Counter({REFUSED: 3})),
        "calls": list(calls),
        "deaths": [10.7],
        "samples": [],
        "events": list(events),
        "epoch": EPOCH,
        "not_recovered": None,
        "lost_edits": 0,
        "later_edit": None,
        "left": [],
        "stopped": 13.0,
        "server": ServerMetadata("triton", "2.51.0"),
    }
    return FaultRun(**{**known, **values})


def test_recovery_counts_from_its_reference_and_for_both_protocols() -> None:
    rows = {reference: build_row(fault_with(reference), run_with()) for reference in (BEGIN, END, DETECTION)}
    assert {reference: row["recovered_s"] for reference, row in rows.items()} == {BEGIN: 1.9, END: 0.9, DETECTION: pytest.approx(1.1)}
    assert rows[DETECTION]["detected_after_s"] == pytest.approx(0.8)
    assert rows[BEGIN]["longest_gap_s"] == {"grpc": 3.0, "http": 2.4}
    assert (rows[BEGIN]["failed"], rows[BEGIN]["failures"]) == (1, {"ConnectionFailedError": 1})
    assert build_row(fault_with(), run_with(CALLS[:4]))["recovered_s"] is None, "nobody had an answer over HTTP"
    assert build_row(fault_with(DETECTION), run_with(events=EVENTS[:1]))["recovered_s"] is None, "nothing was detected"


@pytest.mark.parametrize(
    ("missed", "fault", "run"),
    [
        ([], fault_with(), run_with()),
        (["recovered_s"], fault_with(), run_with(CALLS[:3])),
        (["wrong"], fault_with(), run_with([*CALLS, Call("http", 2, 2, 12.0, 12.1, WRONG, "off")])),
        ([], fault_with(may_answer_wrong=True), run_with([*CALLS, Call("http", 2, 2, 12.0, 12.1, WRONG, "off")])),
        (["wrong"], fault_with(may_answer_wrong=True), run_with([*CALLS, Call("http", 2, 2, 12.9, 12.95, WRONG, "off")])),
        (["failed"], fault_with(may_fail=False), run_with()),
        ([], fault_with(), run_with([*CALLS, Call("http", 2, 2, 12.0, 12.1, REJECTED, "NaN")])),
        ([], fault_with(keeps_rate=True), run_with([*CALLS, Call("http", 2, 2, 10.1, 10.4, RIGHT)])),
        (["rate_kept"], fault_with(keeps_rate=True), run_with()),
        (["rate_kept"], fault_with(keeps_rate=True), run_with(CALLS[2:])),
        (["accepted"], fault_with(), run_with(injection=Injection(10.0, 11.0, Counter({ACCEPTED: 1}), ["half of it"]))),
        (["lost_edits"], fault_with(), run_with(lost_edits=1)),
        (["later_edit"], fault_with(), run_with(later_edit="the edit failed")),
        (["left_behind"], fault_with(), run_with(left=["port 1"])),
    ],
)
def test_a_missed_goal_ends_with_status_1(missed: list[str], fault: Fault, run: FaultRun) -> None:
    row = json.loads(json.dumps(build_row(fault, run), allow_nan=False))
    figures = compute_figures([row], {"killed": fault})
    assert [name.partition(".")[2] for name, figure in figures.items() if not figure["holds"]] == missed
    assert exit_status(figures) == (1 if missed else 0)


def test_without_right_answers_all_goals_are_missed() -> None:
    figures = compute_figures([build_row(fault_with(), run_with([]))], {"killed": fault_with()})
    assert not any(figure["holds"] for figure in figures.values())


# The page and the command


def result_with(run: FaultRun) -> dict[str, Any]:
    rows = [build_row(fault_with(), run)]
    return {
        **RUN,
        "quick": True,
        "note": "Others worked.",
        "members": 3,
        "image_shape": [1, 4, 4],
        "callers": 4,
        "tolerance": 1e-5,
        "rows": rows,
        "not_run": {"disk_full": "this user may not make mounts"},
        "figures": compute_figures(rows, {"killed": fault_with()}),
    }


def test_the_page_shows_the_result() -> None:
    text = page(result_with(run_with()), "result.json")
    assert_facts(text, "[result.json](result.json) | Others worked. | `disk_full` | may not make mounts")
    assert "| `killed` | 5 | 4 | 0 | 0 | 1 | 0.00 | 3.00 | 1.90 | the fault | 1 | hold |" in text
    assert "| `killed` | an action | an expectation | 3 refused |" in text
    assert "**missed**" not in text
    bad = page(result_with(run_with(CALLS[:3])), "result.json")
    assert_facts(bad, "never | **missed**: recovered_s | `killed.recovered_s`")
    assert max(len(line) for shown in (text, bad) for line in shown.splitlines() if not line.startswith("|")) <= 250


def test_the_command_lists_the_faults_and_refuses_unknown_ones() -> None:
    listed = CliRunner().invoke(main, ["--list"])
    assert (listed.exit_code, [line.split()[0] for line in listed.output.splitlines()]) == (0, [fault.name for fault in FAULTS])
    refused = CliRunner().invoke(main, ["--only", "flood"])
    assert (refused.exit_code, "request_flood" in refused.stderr) == (2, True)


# Real runs


@pytest.mark.slow
@pytest.mark.parametrize("name", [fault.name for fault in FAULTS])
def test_a_fault_under_load(cast: Cast, name: str) -> None:
    """Nothing wrong is answered, nothing is lost, the ensemble serves and can be edited again, and nothing is left behind."""
    threads_before = threading.enumerate()
    fault = fault_by_name(name)
    try:
        run = run_fault(fault, cast, TINY)
    except NotRunError as error:
        pytest.skip(str(error))
    row = build_row(fault, run)
    figures = compute_figures([row], {name: fault})
    del figures[f"{name}.recovered_s"]  # a time; that it recovered is the next assertion
    figures.pop(f"{name}.rate_kept", None)  # a speed
    missed = {figure: values["value"] for figure, values in figures.items() if not values["holds"]}
    assert (missed, row["accepted"]["first"], row["failures"] if missed else {}) == ({}, [], {})
    assert run.not_recovered is None
    assert row[RIGHT] > 0
    assert [thread.name for thread in threading.enumerate() if thread not in threads_before] == []
