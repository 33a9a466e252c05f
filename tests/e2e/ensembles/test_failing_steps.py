"""A failing or interrupted step: the old state is restored on disk and on the servers, and the error names the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.facts import assert_each, assert_facts
from tests.support.walking import Edit, EditProcess, EditResult, Stage, answers_match, history, leftovers, models_of, run_completely

DISK_FULL = {"fault": "fail", "kinds": ["files"], "errno": "ENOSPC"}
FORBIDDEN = {"fault": "fail", "kinds": ["files"], "errno": "EACCES"}
UNFLUSHED = {"fault": "fail", "kinds": ["flushes"], "errno": "EIO"}
LOST = {"fault": "fail", "kinds": ["network"], "error": "lost"}
FAILED = {"fault": "fail", "kinds": ["network"], "error": "failed"}
INTERRUPTED = {"fault": "interrupt"}


def walk(
    scene: Scene, edit_process: EditProcess, place: Path, fault: dict[str, Any], *, every: int = 1, replicas: int = 1
) -> list[EditResult]:
    """Inject a fault at every `every`-th step of the edit and check disk and servers; return the results."""
    with scene.staged(place / "stage", replicas=replicas) as stage:
        edit = scene.edit
        complete, new, _ = run_completely(stage, edit_process, edit, kinds=fault.get("kinds", ["files", "network"]))
        results = []
        for at in sorted(range(len(complete.steps), 0, -every)):  # the last step is always among them
            result = edit_process.run(stage, edit, at, **fault)
            assert result.status == 0
            # A server that is idle immediately is polled fewer times, so the edit can end before the step.
            step = result.steps[at - 1] if at <= len(result.steps) else "none"
            if result.error is None or (result.warnings and "the edit is applied" in result.warnings[-1]):
                check_new(stage, edit, new, step)
            else:
                check_old(stage, edit, result, step)
            stage.tidy()  # recovers the edit and removes its leftovers
            assert [leftovers(folder) for folder in stage.folders] == [[] for _ in stage.folders], step
            results.append(result)
            stage.restore()
        return results


def check_old(stage: Stage, edit: Edit, result: EditResult, step: str) -> None:
    """Check that the edit failed and the old state is restored."""
    messages = f"{step}: {result.text}"
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == stage.first[index], messages
        assert stage.ready(index) == stage.loaded[index], messages
        assert answers_match(stage.clients[index], edit.ensemble, edit.before), messages
        assert history(folder) == stage.known[index], messages
        assert not (folder / "pending-edit.json").exists(), messages
        # Files that the failing step should have removed remain until the next edit.
        assert leftovers(folder) == [] or "os.remove" in step or "os.rmdir" in step, messages


def check_new(stage: Stage, edit: Edit, new: Sequence[object], step: str) -> None:
    """Check that the edit is applied and only its cleanup failed."""
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == new[index], step
        assert answers_match(stage.clients[index], edit.ensemble, edit.after), step
        assert history(folder) == [*stage.known[index], edit.verb], step


def check_failures(results: Sequence[EditResult]) -> list[EditResult]:
    """Return the results of failed edits; each must have the step, the reason, and what was restored."""
    failed = [result for result in results if result.error == "EditFailedError"]
    assert failed
    for result in failed:
        assert result.step
        assert f"'{result.step}'" in result.text
        assert result.why in result.text
        assert [line for line in result.put_back if "old state" in line], result.text
        assert "NOT" not in result.text
    return failed


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_disk_fails_at_any_step(edit_process: EditProcess, tmp_path: Path, every: int) -> None:
    results = walk(REWEIGH, edit_process, tmp_path, DISK_FULL, every=every)
    assert all("No space left on device" in result.why for result in check_failures(results))
    assert {result.error for result in results} == {"EditFailedError", None}
    last = results[-1]
    assert (last.error, "pending-edit.json" in last.steps[-1]) == (None, True)
    assert_facts(last.remarks[0], "applied | journal")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_disk_fails_at_any_step_of_any_edit(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    assert all("Permission denied" in result.why for result in check_failures(walk(SCENES[name], edit_process, tmp_path, FORBIDDEN)))


def test_flush_fails_at_every_third_step(edit_process: EditProcess, tmp_path: Path) -> None:
    assert all("Input/output error" in result.why for result in check_failures(walk(REWEIGH, edit_process, tmp_path, UNFLUSHED, every=3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_flush_fails_at_any_step_of_any_edit(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    check_failures(walk(SCENES[name], edit_process, tmp_path, UNFLUSHED))


def test_connection_is_lost_briefly_at_some_steps(edit_process: EditProcess, tmp_path: Path) -> None:
    results = walk(REWEIGH, edit_process, tmp_path, LOST, every=4)
    assert {result.error for result in results} == {None}
    messages = [result.remarks[0] for result in results if result.remarks]
    assert len(messages) > len(results) / 2  # restarts before the execution are only reported as progress
    assert all("restarted" in remark for remark in messages)


def test_call_fails_at_some_steps(edit_process: EditProcess, tmp_path: Path) -> None:
    results = walk(REWEIGH, edit_process, tmp_path, FAILED, every=4)
    for result in check_failures(results):
        assert "injected fault" in result.why
        assert [line for line in result.put_back if "serves" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_call_fails_at_any_step_of_any_edit(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    check_failures(walk(SCENES[name], edit_process, tmp_path, FAILED))


def test_interrupted_at_some_steps(edit_process: EditProcess, tmp_path: Path) -> None:
    check_interrupts(walk(REWEIGH, edit_process, tmp_path, INTERRUPTED, every=9))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_interrupted_at_any_step_of_any_edit(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    check_interrupts(walk(SCENES[name], edit_process, tmp_path, INTERRUPTED))


def check_interrupts(results: Sequence[EditResult]) -> None:
    assert {result.error for result in results} <= {"KeyboardInterrupt", None}
    messages = [result.warnings[-1] for result in results if result.error and result.warnings]
    assert [text for text in messages if "old state" in text]
    assert [text for text in messages if "the edit is applied" in text]
    assert all("interrupted" in text for text in messages)


def test_a_failure_at_one_of_two_replicas_restores_both(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, replicas=2) as stage:
        complete, _, _ = run_completely(stage, edit_process, REWEIGH.edit, kinds=["network"])
        second = max(number for number, step in enumerate(complete.steps, 1) if step == "after load_model ensemble")
        result = edit_process.run(stage, REWEIGH.edit, second, **FAILED)
        check_old(stage, REWEIGH.edit, result, "the second load of the ensemble")
        assert result.step == f"load 'ensemble' on {stage.addresses[1][0]}"
        places = [*(url for url, _ in stage.addresses), *stage.folders]
        assert_each(result.put_back, *(f"{place} | old state" for place in places))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [DISK_FULL, FAILED, INTERRUPTED], ids=["disk", "network", "interrupt"])
def test_failures_at_any_step_with_two_replicas(edit_process: EditProcess, tmp_path: Path, fault: dict[str, Any]) -> None:
    walk(REWEIGH, edit_process, tmp_path, fault, replicas=2)


@pytest.mark.parametrize("wrong", ["average", "ensemble"])
def test_a_wrong_average_fails_the_edit(edit_process: EditProcess, tmp_path: Path, wrong: str) -> None:
    with REWEIGH.staged(tmp_path) as stage:
        _, new, _ = run_completely(stage, edit_process, REWEIGH.edit)
        average = next(name for name in new[0] if name.startswith("average_") and name not in stage.first[0]).partition("/")[0]
        result = edit_process.run(stage, REWEIGH.edit, 0, fault="count", wrong_output=average if wrong == "average" else "ensemble")
        check_old(stage, REWEIGH.edit, result, "the comparison")
        assert result.error == "EditFailedError"
        assert result.step.startswith("compare ")
        assert result.step.endswith("with numpy")
        assert_facts(result.why, "probabilities | 0.01 | numpy")


def test_a_disk_that_stays_full_is_reported_and_recovered_later(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path) as stage:
        complete, _, _ = run_completely(stage, edit_process, REWEIGH.edit, kinds=["files"])
        full = next(number for number, step in enumerate(complete.steps, 1) if "history.jsonl" in step)
        result = edit_process.run(stage, REWEIGH.edit, full, **DISK_FULL, lasts=True)
        assert result.error == "EditFailedError"
        assert_facts(result.text, f"{stage.folders[0]} | NOT")
        assert "next command" in result.text
        assert not [line for line in result.put_back if "serves" in line]
        stage.ensembles().show()
        assert "finished" in "\n".join(stage.warnings)
        assert history(stage.folders[0]) == ["weight"]
        assert answers_match(stage.clients[0], "ensemble", REWEIGH.edit.after)
        assert leftovers(stage.folders[0]) == []
