"""The benchmark of edits under load: the edits, the verification of responses, figures, and a real run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.common.callers import CallersDiedError, choose_rows, running_callers
from benchmarks.common.figures import exit_status
from benchmarks.edit_under_load import SCHEMA, measure
from benchmarks.editing.answers import MIN_DIFFERENCE, Call, min_difference, state_probabilities, states_in_force, verify_calls
from benchmarks.editing.asking import LoopingCallers
from benchmarks.editing.figures import build_result, compute_figures, edit_json, latencies, verdict_json
from benchmarks.editing.page import page
from benchmarks.editing.plan import ACTIONS, Change, State, WeightedMember, draw_changes
from benchmarks.editing.trace import Event, flush_name, request_name, trace_json, traced_flushes
from benchmarks.editing.under_load import AppliedChange, Effort, Run, version_logits
from defensemble.ensembles import Applied
from defensemble_repository.filesystem.atomic_write import write_atomic
from defensemble_server import Server
from tests.support import tiny
from tests.support.checkout import ROOT
from tests.support.facts import assert_each, assert_facts
from tests.support.measured import RUN

SCRIPT = ROOT / "benchmarks" / "edit_under_load.py"
POOL, BATCH, SEED = 12, 4, 7
LOGITS = {(name, 1): tiny.logits(seed, tiny.images(POOL)) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
LOGITS["a", 2] = tiny.logits(4, tiny.images(POOL))
STATES = [
    State((WeightedMember("a"), WeightedMember("b"))),
    State((WeightedMember("a"), WeightedMember("b", weight=3.0))),
    State((WeightedMember("a"), WeightedMember("b", weight=3.0)), "logits"),
    State((WeightedMember("a"), WeightedMember("b", weight=3.0))),
]
EXPECTED = [state_probabilities(state, LOGITS) for state in STATES]
EDITS = [(10.0, 12.0), (20.0, 22.0), (30.0, 32.0)]


def call(number: int, sent: float, state: int, *, caller: int = 0, off: float = 0.0) -> Call:
    """Return a call that arrives a second after it was sent, with the output of a state."""
    rows = choose_rows(SEED, caller, number, POOL, BATCH)
    return Call(caller, number, sent, sent + 1, (EXPECTED[state][rows] + off).astype(np.float32))


def verified(calls: Sequence[Call]) -> tuple[list[str], list[str], list[str]]:
    verdict = verify_calls(calls, EXPECTED, EDITS, seed=SEED, batch=BATCH)
    assert verdict.calls == len(calls)
    assert sum(verdict.by_state.values()) + len(verdict.failed) + len(verdict.wrong) + len(verdict.stale) == len(calls)
    return verdict.failed, verdict.wrong, verdict.stale


GOOD = [call(0, 1, 0), call(1, 9.5, 0), call(2, 11, 1), call(3, 12, 1), call(4, 15, 1), call(5, 20.5, 2), call(6, 29, 2), call(7, 33, 3)]


def test_correct_responses_in_the_order_of_the_states_are_accepted() -> None:
    assert verified(GOOD) == ([], [], [])
    verdict = verify_calls(GOOD, EXPECTED, EDITS, seed=SEED, batch=BATCH)
    assert dict(verdict.by_state) == {0: 2, 1: 3, 2: 2, 3: 1}
    assert verdict.between == 5  # the second to fourth, sixth and seventh
    assert 0 < verdict.largest_difference < 1e-6


def test_a_failed_request_is_reported() -> None:
    failed, wrong, stale = verified([*GOOD[:3], Call(0, 3, 12, 13, None, "UnavailableError: gone"), *GOOD[4:]])
    assert (wrong, stale) == ([], [])
    assert_each(failed, "call 3 | caller 0 | UnavailableError | gone")


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (call(4, 15, 1, off=2e-5), "no state | 2e-05 | 1"),
        (call(4, 15, 0), "state 0 | 1"),  # replaced at 12
        (call(4, 18.9, 2), "state 2 | 1"),  # not in force before 20
        (call(4, 19.5, 0), "state 0 | 1 and 2"),
        (call(4, 15, 1, off=float("nan")), "no state | inf"),
        (replace(call(4, 15, 1), answer=np.zeros((BATCH, 2))), "no state | inf"),
        (replace(call(4, 15, 1), answer=call(5, 15, 1).answer), "no state"),  # for other images
    ],
)
def test_a_wrong_response_is_reported(bad: Call, text: str) -> None:
    failed, wrong, stale = verified([*GOOD[:4], bad])
    assert (failed, stale) == ([], [])
    assert len(wrong) == 1
    assert_facts(wrong[0], f"call 4 | caller 0 | {text}")


def test_a_response_that_mixes_two_states_is_wrong() -> None:
    mixed = call(2, 11, 1)
    assert mixed.answer is not None
    mixed.answer[2:] = EXPECTED[0][choose_rows(SEED, 0, 2, POOL, BATCH)][2:]
    failed, wrong, stale = verified([mixed])
    assert (failed, len(wrong), stale) == ([], 1, [])


def test_an_old_response_after_a_new_one_is_stale_only_for_that_caller() -> None:
    calls = [call(0, 10.2, 1), call(1, 10.4, 0), call(0, 10.2, 0, caller=1), call(1, 10.4, 1, caller=1), call(2, 10.9, 0, caller=1)]
    failed, wrong, stale = verified(calls)
    assert (failed, wrong) == ([], [])
    assert_each(stale, "call 1 | caller 0 | state 0 | state 1", "call 2 | caller 1 | state 0 | state 1")


def test_states_with_equal_outputs_are_distinguished_by_time() -> None:
    # States 1 and 3 are the same ensemble: its output after state 2 is correct during the third edit, and wrong before.
    assert verified([call(0, 21, 2), call(1, 30.5, 3)]) == ([], [], [])
    failed, wrong, stale = verified([call(0, 20.5, 2), call(1, 20.9, 1)])
    assert (failed, wrong, len(stale)) == ([], [], 1)
    # During such a long call all four states were in force, and the first response may be that of the third.
    long = replace(call(1, 12, 3), arrived=31.0)
    assert verified([call(0, 20.5, 2), long]) == ([], [], [])


@pytest.mark.parametrize(
    ("sent", "arrived", "states"),
    [(0, 1, [0]), (0, 10, [0, 1]), (12, 13, [0, 1]), (12.1, 13, [1]), (9, 31, [0, 1, 2, 3]), (40, 41, [3])],
)
def test_states_in_force_during_a_call(sent: float, arrived: float, states: list[int]) -> None:
    assert list(states_in_force(EDITS, sent, arrived)) == states


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_the_output_of_a_state_follows_the_definition(average: str) -> None:
    state = State((WeightedMember("a", 2, 0.5), WeightedMember("c", 1, 2.0)), average)
    for row, got in enumerate(state_probabilities(state, LOGITS)):
        first, second = LOGITS["a", 2][row], LOGITS["c", 1][row]
        if average == "probabilities":
            expected_row = (0.5 * tiny.softmax(first) + 2 * tiny.softmax(second)) / 2.5
        else:
            expected_row = tiny.softmax((0.5 * first + 2 * second) / 2.5)
        assert got == pytest.approx(expected_row, abs=1e-12)


def test_the_minimum_difference_holds_for_any_batch() -> None:
    ours, theirs = np.zeros((4, 2)), np.array([[0, 0.5], [0.1, 0], [0, 0.3], [0.2, 0]])
    assert [min_difference(ours, theirs, batch) for batch in (1, 2, 4)] == [0.1, 0.2, 0.5]


def are_distinguishable(first: State, second: State) -> bool:
    return min_difference(state_probabilities(first, LOGITS), state_probabilities(second, LOGITS), BATCH) > MIN_DIFFERENCE


VERSIONS = {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1}
for index, name in enumerate(("d", "e")):
    LOGITS[name, 1] = tiny.logits(5 + index, tiny.images(POOL))


@pytest.mark.parametrize("seed", range(5))
def test_edits_are_drawn_from_the_seed_and_change_the_outputs(seed: int) -> None:
    start = State(tuple(WeightedMember(name) for name in "abcd"))
    changes = draw_changes(VERSIONS, start, 30, seed, are_distinguishable=are_distinguishable, same_models_after=(5, 30))
    assert changes == draw_changes(VERSIONS, start, 30, seed, are_distinguishable=are_distinguishable, same_models_after=(5, 30))
    assert changes != draw_changes(VERSIONS, start, 30, seed + 100, are_distinguishable=are_distinguishable, same_models_after=(5, 30))
    assert len(changes) == 30
    assert changes[4].state.models == changes[29].state.models
    state = start
    for change in changes:
        assert are_distinguishable(state, change.state)
        assert len(change.state.members) >= 4
        state = change.state
    counts = [sum(change.action == action for change in changes) for action in ACTIONS]
    assert min(counts) >= 3
    with pytest.raises(ValueError, match="no edit"):
        draw_changes({"a": 1}, State((WeightedMember("a"),)), 1, seed, are_distinguishable=lambda first, second: False)


def applied_change(
    begin: float, end: float, *, writes: float = 0.02, loads: float = 0.02, loaded: Sequence[str] = ("average_1",)
) -> AppliedChange:
    seconds = {"checks": 0.1, "writes": writes, "loads": loads, "inferences": 0.2, "drain": 0.1, "total": end - begin}
    applied = Applied("ensemble", None, ("weight",), loaded={"grpc://x": tuple(loaded)}, seconds=seconds)
    return AppliedChange(Change("weight", {}, STATES[0]), applied, begin, end)


def call_at(sent: float, took: float, caller: int = 0) -> Call:
    return Call(caller, 0, sent, sent + took, np.zeros((1, 2)))


def test_calls_are_split_by_whether_they_overlap_an_edit() -> None:
    edits = [applied_change(10, 11), applied_change(20, 22)]
    calls = [
        call_at(9.5, 0.4),
        call_at(9.8, 0.5),
        call_at(10.9, 1),
        call_at(15, 0.2, 1),
        call_at(19.9, 3),
        call_at(25, 0.3),
        call_at(0.5, 0.1),
        call_at(29.9, 0.2),
    ]
    output = latencies([*calls, Call(0, 1, 12, 13, None, "failed")], edits, 1.0, 30.0)
    assert (output["during"]["n"], output["without"]["n"]) == (3, 3)
    assert output["during"]["max_ms"] == pytest.approx(3000)
    assert (output["seconds_with"], output["seconds_without"]) == (3, 26)
    assert output["p99_during_by_without"] == pytest.approx(np.percentile([0.5, 1, 3], 99) / np.percentile([0.4, 0.2, 0.3], 99), rel=1e-3)
    assert output["p99_interval"][0] < output["p99_during_by_without"] <= output["p99_interval"][1]
    assert output["by_protocol"]["http"]["without"] == {"n": 1, "p50_ms": 200, "p99_ms": 200, "max_ms": 200}
    none = latencies([], edits, 1.0, 30.0)
    assert none["p99_during_by_without"] is None
    assert none["p99_interval"] is None


EVENTS = [
    Event("request", "infer: the ensemble", 10.5, 11.0),
    Event("flush", "the journal", 10.1, 10.102),
    Event("flush", "the journal", 20.1, 20.104),
    Event("flush", "the journal", 30.1, 30.106),
    Event("flush", "the journal", 12.5, 12.6),  # between edits
    Event("flush", "the history", 11.9, 12.1),
]


def test_the_trace_counts_what_is_within_an_edit() -> None:
    assert trace_json(EVENTS, EDITS) == [
        {"kind": "flush", "name": "the journal", "per_edit": 1.0, "median_ms": 4.0},
        {"kind": "request", "name": "infer: the ensemble", "per_edit": 0.33, "median_ms": 500.0},
    ]
    assert trace_json(EVENTS, []) == trace_json([], EDITS) == []
    loading = result_with(loaded=["member1", "average_2"])
    assert loading["trace"] == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("repository", "the repository's folder"),
        ("repository/.pending-edit.json.123", "the journal"),
        ("repository/.history.jsonl.7", "the history"),
        ("repository/ensemble", "ensemble"),
        (".repository.staging-ab12_xyz/pending-edit.json", "the journal"),
        (".repository.staging-ab12_xyz/ensemble/config.pbtxt", "ensemble/config.pbtxt"),
        (".repository.staging-ab12_xyz/average_0123456789abcdef/1/model.onnx", "average/1/model.onnx"),
    ],
)
def test_a_flush_is_named_after_the_place_that_the_file_gets(path: str, name: str) -> None:
    assert flush_name(Path("/data") / path, Path("/data/repository")) == name


def test_requests_are_named_after_the_role_of_the_model() -> None:
    models = ("ensemble", "average_0123456789abcdef", "keep0.3", "")
    names = [request_name("infer", model, "ensemble") for model in models]
    assert len(set(names)) == 4
    assert_each(names, "ensemble", "averaging", "member", "infer")


def test_flushes_are_recorded_with_their_duration(tmp_path: Path) -> None:
    events: list[Event] = []
    flush = os.fsync
    repository = tmp_path / "repository"
    repository.mkdir()
    with traced_flushes(repository, events.append):
        write_atomic(repository / "history.jsonl", b"x")
        write_atomic(tmp_path.parent / "another", b"x")
    assert os.fsync is flush
    assert [(event.kind, event.name) for event in events] == [("flush", "the history"), ("flush", "the repository's folder")]
    assert all(event.begin <= event.end for event in events)


def result_with(calls: Sequence[Call] = GOOD, **values: Any) -> dict[str, Any]:
    """Return the result of three edits of 2 s and calls of a second."""
    edits = [applied_change(*times, **values) for times in EDITS]
    run = Run(list(calls), edits, [[100, 100], [104, 90], [100, 101], [100, 103]], 0.5, 40.0, {}, EVENTS)
    return build_result(run, verify_calls(calls, EXPECTED, EDITS, seed=SEED, batch=BATCH), 3, (1, 3))


@pytest.mark.parametrize(
    ("missed", "change"),
    [
        ("", lambda: result_with()),
        ("failed_requests", lambda: result_with([*GOOD, Call(1, 0, 1, 2, None, "gone")])),
        ("wrong_answers", lambda: result_with([*GOOD, call(8, 35, 2)])),
        ("old_answers_after_new", lambda: result_with([*GOOD, call(0, 10.2, 1, caller=1), call(1, 10.4, 0, caller=1)])),
        ("p99_during_edits_by_without", lambda: result_with([*GOOD[:-1], replace(call(7, 30, 3), arrived=32.0)])),
        ("own_work_of_an_edit_s", lambda: result_with(writes=0.08)),
        ("edit_by_call", lambda: result_with([replace(entry, sent=entry.arrived - 0.3) for entry in GOOD])),
    ],
)
def test_a_missed_figure_is_named_and_ends_with_status_1(missed: str, change: Callable[[], dict[str, Any]]) -> None:
    figures = change()["figures"]
    assert [name for name, figure in figures.items() if not figure["holds"]] == ([missed] if missed else [])
    assert exit_status(figures) == (1 if missed else 0)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_memory_has_two_limits_and_missing_values_miss_their_goal() -> None:
    result = result_with()
    assert result["memory"]["ratio"] == pytest.approx(101.5 / 97, abs=1e-4)
    for ratio, holds in ((1.05, True), (1.051, False), (0.949, False)):
        figures = compute_figures({**result, "memory": {"ratio": ratio}})
        assert figures["memory_late_by_early"] == {"value": ratio, "goal": "within 5 %", "holds": holds}
    empty = result_with([])
    missing = {name: figure["value"] for name, figure in empty["figures"].items() if not figure["holds"]}
    assert missing == {
        "failed_requests": 0,
        "wrong_answers": 0,
        "old_answers_after_new": 0,
        "p99_during_edits_by_without": None,
        "edit_by_call": None,
    }
    loading = result_with(loaded=["member1", "average_2"])
    assert loading["figures"]["own_work_of_an_edit_s"]["value"] is None


def test_own_work_is_writes_and_loads() -> None:
    output = edit_json(applied_change(10, 11, loaded=["average_1", "member1"]), [3, 1, 2])
    assert (output["own_work_s"], output["members_loaded"], output["pss_bytes_after"]) == (0.04, ["member1"], 2)


def complete(result: dict[str, Any], **values: Any) -> dict[str, Any]:
    """Add the description of the machine, which the page needs."""
    description = {
        **RUN,
        "quick": False,
        "note": None,
        "members": 2,
        "callers": 8,
        "batch": 4,
        "timed_edits": 3,
        "image_shape": [1, 4, 4],
        "tolerance": 1e-5,
        "least_apart": 0.01,
        "versions": {"python": "3.11", "onnxruntime": "1.32"},
        "member_spec": {"arch": "resnet18", "width": 16, "keep": 0.3, "blocks": [0, 1, 2], "trained": False},
    }
    return {**description, **result, **values}


def test_the_page_shows_the_result() -> None:
    text = page(complete(result_with()), "result.json")
    assert "[result.json](result.json)" in text
    assert text.count("| holds |") == 7
    assert "**missed**" not in text
    assert "8 calls, 8 responses" in text
    assert page(complete(result_with()), "result.json") == text
    assert "| flush of the journal | 1.00 | 4.0 |" in text
    assert "fsync" not in page(complete({**result_with(), "trace": []}), "result.json")
    bad = page(complete(result_with([*GOOD, call(8, 35, 2)]), quick=True, note="Others worked."), "result.json")
    assert "A quick run" in bad
    assert "Others worked." in bad
    assert bad.count("**missed**") == 1
    assert_facts(bad, "wrong | call 8 | caller 0 | state 2 | 3")
    nothing = page(complete(result_with([])), "result.json")
    assert nothing.count("**missed**") == 5
    assert "not measured" in nothing
    assert max(len(line) for shown in (text, bad, nothing) for line in shown.splitlines() if not line.startswith("|")) <= 250


def test_the_kept_figures_follow_from_the_result() -> None:
    path = ROOT / "docs/results/edit_under_load.json"
    result = json.loads(path.read_text())
    assert result["schema"] == SCHEMA == "defensemble.benchmark.edit_under_load/1"
    assert (result["quick"], len(result["edits"]), result["timed_edits"], result["memory"]["after_edits"]) == (False, 50, 20, [5, 50])
    assert result["figures"] == compute_figures(result)


def test_verdicts_list_the_first_ten() -> None:
    calls = [Call(0, number, 1, 2, None, "gone") for number in range(12)]
    output = verdict_json(verify_calls(calls, EXPECTED, EDITS, seed=SEED, batch=BATCH))
    assert (output["failed"]["n"], len(output["failed"]["first"]), output["wrong"]["n"]) == (12, 10, 0)


def test_callers_in_separate_processes_return_every_response_and_failure(triton: Server) -> None:
    pool = tiny.images(POOL)
    jobs = [
        LoopingCallers(triton.grpc_url, (0, 2), "ensemble", pool, BATCH, SEED),
        LoopingCallers(triton.http_url, (1,), "ensemble", pool, BATCH, SEED),
        LoopingCallers(triton.grpc_url, (3,), "unknown", pool, BATCH, SEED),
    ]
    started = time.monotonic()
    with running_callers(jobs) as callers:
        callers.check()
        calls = callers.stop()
    assert {call.caller for call in calls} == {0, 1, 2, 3}
    expected = state_probabilities(State((WeightedMember("a"), WeightedMember("b", weight=3.0))), LOGITS)
    for caller in range(4):
        caller_calls = sorted((call for call in calls if call.caller == caller), key=lambda call: call.number)
        assert [call.number for call in caller_calls] == list(range(len(caller_calls)))
        assert all(started < call.sent <= call.arrived < time.monotonic() for call in caller_calls)
    verdict = verify_calls(calls, [expected], [], seed=SEED, batch=BATCH)
    assert (verdict.wrong, verdict.stale) == ([], [])
    assert len(verdict.failed) == sum(call.caller == 3 for call in calls) > 0
    assert all("caller 3: ModelNotFoundError" in text for text in verdict.failed)


def test_dead_callers_are_detected(triton: Server) -> None:
    with running_callers([LoopingCallers(triton.http_url, (0,), "ensemble", tiny.images(POOL), BATCH, SEED)]) as callers:
        process = callers._processes[0]
        process.kill()
        process.join(timeout=30)
        with pytest.raises(CallersDiedError, match="status -9"):
            callers.check()
        with pytest.raises(CallersDiedError):
            callers.stop()


def test_help_lists_the_options() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--json FILE", "--quick", "--note", "--seed", "Examples:"):
        assert option in done.stdout


def test_versions_of_a_model_are_numbered_in_export_order() -> None:
    members, later = [tiny.member("a", 1), tiny.member("b", 2)], [tiny.member("c", 3), tiny.member("a", 4)]
    logits_by_version = version_logits(members, later, tiny.images(POOL))
    assert set(logits_by_version) == {("a", 1), ("a", 2), ("b", 1), ("c", 1)}
    for key, answer in logits_by_version.items():
        assert answer == pytest.approx(LOGITS[key], abs=1e-4)


@pytest.mark.slow
def test_no_request_fails_or_is_wrong_while_an_ensemble_is_edited() -> None:
    """All kinds of edits under eight callers of a real Triton; durations are not asserted."""
    members = [tiny.member(f"m{seed}", seed) for seed in range(5)]
    later = [tiny.member("m5", 5), tiny.member("m0", 6)]
    effort = Effort(edits=20, timed=20, memory_after=(5, 20), quiet_s=0.2, later_quiet_s=0.2, warm_s=0.5)
    result = measure(members, later, tiny.images(64), effort, seed=3)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert {edit["action"] for edit in result["edits"]} == set(ACTIONS)
    assert any("m5" in edit["members_loaded"] for edit in result["edits"])
    answers = result["answers"]
    assert (answers["failed"], answers["wrong"], answers["old_after_new"]) == ({"n": 0, "first": []},) * 3
    assert sum(answers["by_state"].values()) == answers["calls"] > 200
    assert len(answers["by_state"]) > 10
    assert answers["while_two_states_were_in_force"] > 20
    traced = {row["name"]: row["per_edit"] for row in result["trace"]}
    assert traced["the history"] == traced["infer: the ensemble"] == traced["load_model: the ensemble"] == 1
    assert result["least_apart"] > MIN_DIFFERENCE > 10 * result["tolerance"]
    text = page(complete(result), "result.json")
    assert f"{answers['calls']:,} calls, {answers['calls']:,} responses" in text
