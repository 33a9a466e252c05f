"""The server is killed during an edit and not restarted: the edit reports its result, and another server continues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from defensemble import Client
from defensemble.ensembles import Ensembles
from defensemble_repository.pbtxt import config_from_pbtxt
from defensemble_server import serve
from tests.support.edits import REWEIGH, SCENES, Scene
from tests.support.facts import assert_facts
from tests.support.walking import QUIET, Edit, EditProcess, EditResult, Stage, answers_match, history, leftovers, models_of

# Calls of an edit of weights: the first one, the end of the ensemble's load, and an unload.
CALLS = ["repository_index", "after load_model ensemble", "unload_model average_"]


def calls_of(scene: Scene, edit_process: EditProcess, place: Path) -> list[str]:
    """Return the calls of the edit."""
    with scene.staged(place) as stage:
        whole = edit_process.run(stage, scene.edit, 0, fault="count", kinds=["network"])
        assert whole.error is None
        return list(whole.steps)


def kill_server_at(scene: Scene, edit_process: EditProcess, place: Path, at: int) -> EditResult:
    """Kill the server before the `at`-th call of the edit, and check what is left."""
    edit = scene.edit
    with scene.staged(place) as stage:
        folder, old = stage.folders[0], stage.first[0]
        result = edit_process.run(stage, edit, at, fault="kill_server", kinds=["network"], server=stage.servers[0].state.pid)
        step = result.steps[at - 1] if at <= len(result.steps) else "none"
        is_committed = history(folder) != stage.known[0]
        if is_committed:
            assert result.error is None, f"{step}: {result.text}"
        else:
            assert result.error in ("EditFailedError", "ConnectionFailedError"), f"{step}: {result.text}"
            kept = {path: content for path, content in restored_models(stage, edit, result.steps[:at]).items() if path in old}
            assert kept == old, step
        known = stage.known[0]
    with serve(folder, QUIET) as again, Client(again.http_url, admin_key=again.state.admin_key) as client:
        # With a weight edited by hand, the old averaging model does not match its parameters, as before the edit.
        assert answers_match(client, edit.ensemble, edit.after if is_committed else edit.before), step
        Ensembles(folder, client).create("another", ["alpha"], dry_run=True)
        assert leftovers(folder) == []
        assert answers_match(client, edit.ensemble, edit.after if is_committed else edit.before), step
        assert is_committed or restored_models(stage, edit, result.steps[:at]) == old, step
        assert history(folder) == [*known, *([edit.verb] if is_committed else [])]
    return result


def restored_models(stage: Stage, edit: Edit, steps: Sequence[str]) -> dict[str, bytes | None]:
    """Return what a failed edit left on disk, with the hand edit in its original place.

    If a server tried to load the hand edit, that is saved as rejected, and a restarted server loads what it served before.
    """
    now, path = models_of(stage.folders[0]), f"{edit.ensemble}/config.pbtxt"
    rejected = now.pop(f"{path}.rejected", None)
    assert (rejected is not None) == (edit.by_hand and f"load_model {edit.ensemble}" in steps)
    if rejected is not None:
        batches = [config_from_pbtxt(text.decode(), edit.ensemble).max_batch_size for text in (now[path], rejected) if text is not None]
        assert batches == [8, 4]
        now[path] = rejected
    return now


def check_report(result: EditResult, at: int) -> None:
    """Check that a failed edit reports its step, the reason, and that the server could not be reached."""
    if result.error == "EditFailedError":
        assert result.step
        assert "://127.0.0.1:" in result.why
        assert "reached" in result.text
        assert "next command" in result.text
    elif result.error is None:
        assert result.left_loaded or result.remarks or at == len(result.steps)  # unless it was killed after the last call


def test_server_is_killed_at_some_calls(edit_process: EditProcess, tmp_path: Path) -> None:
    steps = calls_of(REWEIGH, edit_process, tmp_path / "whole")
    kinds = []
    for begins in CALLS:
        at = next(number for number, step in enumerate(steps, 1) if step.startswith(begins))
        result = kill_server_at(REWEIGH, edit_process, tmp_path / str(at), at)
        check_report(result, at)
        kinds.append(result.error)
    assert kinds == ["ConnectionFailedError", "EditFailedError", None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "add", "create", "delete", "rollback", "switch", "reload of a batch size"])
def test_server_is_killed_at_every_call(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    steps = calls_of(SCENES[name], edit_process, tmp_path / "whole")
    for at in range(1, len(steps) + 1):
        check_report(kill_server_at(SCENES[name], edit_process, tmp_path / str(at), at), at)


def test_a_killed_server_restores_the_other(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, replicas=2) as stage:
        whole = edit_process.run(stage, REWEIGH.edit, 0, fault="count", kinds=["network"])
        stage.restore()
        at = max(number for number, step in enumerate(whole.steps, 1) if step == "load_model ensemble")
        result = edit_process.run(stage, REWEIGH.edit, at, fault="kill_server", kinds=["network"], server=stage.servers[1].state.pid)
        assert result.error == "EditFailedError"
        (first, _), (second, _) = stage.addresses
        assert result.step == f"load 'ensemble' on {second}"
        assert any(first in line for line in result.put_back)
        assert_facts(result.text, f"{second} | reached")
        assert answers_match(stage.clients[0], "ensemble", REWEIGH.edit.before)
        configs = [(folder / "ensemble" / "config.pbtxt").read_bytes() for folder in stage.folders]
        assert configs == [first["ensemble/config.pbtxt"] for first in stage.first]
