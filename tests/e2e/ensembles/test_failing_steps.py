"""A step of an edit that fails, or is interrupted: the old state is put back, on disk and in the servers, and what failed is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.facts import assert_each, assert_facts
from tests.support.walking import Cut, Cutter, Edit, Stage, answers_as, history, leftovers, models_of, uncut

DISK_FULL = {"how": "fail", "kinds": ["files"], "errno": "ENOSPC"}
FORBIDDEN = {"how": "fail", "kinds": ["files"], "errno": "EACCES"}
UNFLUSHED = {"how": "fail", "kinds": ["flushes"], "errno": "EIO"}
LOST = {"how": "fail", "kinds": ["network"], "error": "lost"}
FAILED = {"how": "fail", "kinds": ["network"], "error": "failed"}
INTERRUPTED = {"how": "interrupt"}


def walk(scene: Scene, cutter: Cutter, place: Path, how: dict[str, Any], *, every: int = 1, replicas: int = 1) -> list[Cut]:
    """Lets steps of the edit fail, each `every`-th, and looks at disk and servers; returns what was said of each."""
    with scene.staged(place / "stage", replicas=replicas) as stage:
        edit = scene.edit
        whole, new, _ = uncut(stage, cutter, edit, kinds=how.get("kinds", ["files", "network"]))
        cuts = []
        for at in sorted(range(len(whole.steps), 0, -every)):  # the last step is always among them
            cut = cutter.cut(stage, edit, at, **how)
            assert cut.status == 0
            # A server that is idle at once is asked fewer times whether it is: the edit can end before the step.
            step = cut.steps[at - 1] if at <= len(cut.steps) else "none"
            if cut.error is None or (cut.warned and "the edit is applied" in cut.warned[-1]):
                check_new(stage, edit, new, step)
            else:
                check_old(stage, edit, cut, step)
            stage.tidy()  # finishes and takes away what the step has left
            assert [leftovers(folder) for folder in stage.folders] == [[] for _ in stage.folders], step
            cuts.append(cut)
            stage.restore()
        return cuts


def check_old(stage: Stage, edit: Edit, cut: Cut, step: str) -> None:
    """The edit failed: everything is as it was."""
    told = f"{step}: {cut.text}"
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == stage.first[index], told
        assert stage.ready(index) == stage.loaded[index], told
        assert answers_as(stage.clients[index], edit.ensemble, edit.before), told
        assert history(folder) == stage.known[index], told
        assert not (folder / "pending-edit.json").exists(), told
        # What the failing step was to remove is still there, and the next edit removes it.
        assert leftovers(folder) == [] or "os.remove" in step or "os.rmdir" in step, told


def check_new(stage: Stage, edit: Edit, new: Sequence[object], step: str) -> None:
    """The edit is in place: only what comes after it has failed."""
    for index, folder in enumerate(stage.folders):
        assert models_of(folder) == new[index], step
        assert answers_as(stage.clients[index], edit.ensemble, edit.after), step
        assert history(folder) == [*stage.known[index], edit.verb], step


def told_of(cuts: Sequence[Cut]) -> list[Cut]:
    """Those that failed while the edit was carried out, each of which must say where, why, and what is back."""
    failed = [cut for cut in cuts if cut.error == "EditFailedError"]
    assert failed
    for cut in failed:
        assert cut.step
        assert f"'{cut.step}'" in cut.text
        assert cut.why in cut.text
        assert [line for line in cut.put_back if "old state" in line], cut.text
        assert "NOT" not in cut.text
    return failed


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_disk_that_fails_at_any_step(cutter: Cutter, tmp_path: Path, every: int) -> None:
    cuts = walk(REWEIGH, cutter, tmp_path, DISK_FULL, every=every)
    assert all("No space left on device" in cut.why for cut in told_of(cuts))
    assert {cut.error for cut in cuts} == {"EditFailedError", None}
    last = cuts[-1]
    assert (last.error, "pending-edit.json" in last.steps[-1]) == (None, True)
    assert_facts(last.remarks[0], "applied | journal")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_a_disk_that_fails_at_any_step_of_any_edit(cutter: Cutter, tmp_path: Path, name: str) -> None:
    assert all("Permission denied" in cut.why for cut in told_of(walk(SCENES[name], cutter, tmp_path, FORBIDDEN)))


def test_a_flush_that_fails_at_any_third_step(cutter: Cutter, tmp_path: Path) -> None:
    assert all("Input/output error" in cut.why for cut in told_of(walk(REWEIGH, cutter, tmp_path, UNFLUSHED, every=3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_a_flush_that_fails_at_any_step_of_any_edit(cutter: Cutter, tmp_path: Path, name: str) -> None:
    told_of(walk(SCENES[name], cutter, tmp_path, UNFLUSHED))


def test_a_connection_that_is_lost_for_a_moment_at_some_steps(cutter: Cutter, tmp_path: Path) -> None:
    cuts = walk(REWEIGH, cutter, tmp_path, LOST, every=7)
    assert {cut.error for cut in cuts} == {None}
    told = [cut.remarks[0] for cut in cuts if cut.remarks]
    assert len(told) > len(cuts) / 2  # before an edit is carried out, only what it says on its way tells of it
    assert all("restarted" in remark for remark in told)


def test_a_call_that_fails_at_some_steps(cutter: Cutter, tmp_path: Path) -> None:
    cuts = walk(REWEIGH, cutter, tmp_path, FAILED, every=7)
    for cut in told_of(cuts):
        assert "told to fail" in cut.why
        assert [line for line in cut.put_back if "serves" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_a_call_that_fails_at_any_step_of_any_edit(cutter: Cutter, tmp_path: Path, name: str) -> None:
    told_of(walk(SCENES[name], cutter, tmp_path, FAILED))


def test_an_interrupt_at_some_steps(cutter: Cutter, tmp_path: Path) -> None:
    check_interrupts(walk(REWEIGH, cutter, tmp_path, INTERRUPTED, every=9))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_an_interrupt_at_any_step_of_any_edit(cutter: Cutter, tmp_path: Path, name: str) -> None:
    check_interrupts(walk(SCENES[name], cutter, tmp_path, INTERRUPTED))


def check_interrupts(cuts: Sequence[Cut]) -> None:
    assert {cut.error for cut in cuts} <= {"KeyboardInterrupt", None}
    told = [cut.warned[-1] for cut in cuts if cut.error and cut.warned]
    assert [text for text in told if "old state" in text]
    assert [text for text in told if "the edit is applied" in text]
    assert all("interrupted" in text for text in told)


def test_where_one_of_two_replicas_fails_it_is_named_and_the_other_is_put_back(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, replicas=2) as stage:
        whole, _, _ = uncut(stage, cutter, REWEIGH.edit, kinds=["network"])
        second = max(number for number, step in enumerate(whole.steps, 1) if step == "after load_model ensemble")
        cut = cutter.cut(stage, REWEIGH.edit, second, **FAILED)
        check_old(stage, REWEIGH.edit, cut, "the second load of the ensemble")
        assert cut.step == f"load 'ensemble' on {stage.addresses[1][0]}"
        places = [*(url for url, _ in stage.addresses), *stage.folders]
        assert_each(cut.put_back, *(f"{place} | old state" for place in places))


@pytest.mark.slow
@pytest.mark.parametrize("how", [DISK_FULL, FAILED, INTERRUPTED], ids=["disk", "network", "interrupt"])
def test_any_step_of_two_replicas(cutter: Cutter, tmp_path: Path, how: dict[str, Any]) -> None:
    walk(REWEIGH, cutter, tmp_path, how, replicas=2)


@pytest.mark.parametrize("lies", ["average", "ensemble"])
def test_an_answer_that_is_not_numpys_is_no_edit(cutter: Cutter, tmp_path: Path, lies: str) -> None:
    with REWEIGH.staged(tmp_path) as stage:
        _, new, _ = uncut(stage, cutter, REWEIGH.edit)
        average = next(name for name in new[0] if name.startswith("average_") and name not in stage.first[0]).partition("/")[0]
        cut = cutter.cut(stage, REWEIGH.edit, 0, how="count", lie=average if lies == "average" else "ensemble")
        check_old(stage, REWEIGH.edit, cut, "the comparison")
        assert cut.error == "EditFailedError"
        assert cut.step.startswith("compare ")
        assert cut.step.endswith("with numpy")
        assert_facts(cut.why, "probabilities | 0.01 | numpy")


def test_a_disk_that_stays_full_is_told_and_the_next_command_mends_what_it_left(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path) as stage:
        whole, _, _ = uncut(stage, cutter, REWEIGH.edit, kinds=["files"])
        full = next(number for number, step in enumerate(whole.steps, 1) if "history.jsonl" in step)
        cut = cutter.cut(stage, REWEIGH.edit, full, **DISK_FULL, lasts=True)
        assert cut.error == "EditFailedError"
        assert_facts(cut.text, f"{stage.folders[0]} | NOT")
        assert "next command" in cut.text
        assert not [line for line in cut.put_back if "serves" in line]
        stage.ensembles().show()
        assert "finished" in "\n".join(stage.warned)
        assert history(stage.folders[0]) == ["weight"]
        assert answers_as(stage.clients[0], "ensemble", REWEIGH.edit.after)
        assert leftovers(stage.folders[0]) == []
