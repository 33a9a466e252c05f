"""The server is killed during an edit and its guard restarts it: the edit finishes, or the old state is restored."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from defensemble import Client
from defensemble.ensembles import Ensembles, server_models
from defensemble.ensembles.server_models import is_averaging
from defensemble_export.editing.plan import used_models
from defensemble_repository.view import RepositoryView
from tests.support.edits import REWEIGH, SCENES, SWITCHED, Scene
from tests.support.walking import (
    Edit,
    EditProcess,
    EditResult,
    Members,
    Stage,
    answers_match,
    history,
    leftovers,
    models_of,
    run_completely,
)

SHOW = Edit("show", [], None, None)
# Calls of an edit of weights before and after the new configuration is on disk.
CALLS = ["load_model average_", "after load_model ensemble"]


def number_of(steps: Sequence[str], begins: str, after: int = 0) -> int:
    """Return the number of the first step with a prefix, after another step."""
    return next(number for number, step in enumerate(steps, 1) if number > after and step.startswith(begins))


def run_and_kill_server(stage: Stage, edit_process: EditProcess, edit: Edit, at: int, *, index: int = 0, **how: Any) -> EditResult:
    """Kill a server at the `at`-th call of the edit, and wait until it is restarted and checked."""
    server = stage.servers[index]
    before = server.triton_pid
    result = edit_process.run(stage, edit, at, **{"fault": "kill_server", "kinds": ["network"], "server": server.state.pid, **how})
    assert result.status == 0
    # A server that is idle immediately is polled fewer times, so the edit can end before that call.
    if max([at, *how.get("later", ())]) <= len(result.steps):
        stage.wait_restarted(index, before)
    return result


def check_all(stage: Stage, edit: Edit, members: Members | None, disk: Sequence[Mapping[str, bytes | None]], step: str, *done: str) -> None:
    """Check that disk, history and servers have the state of `members`; `disk` is the content and `done` the new actions."""
    for index, folder in enumerate(stage.folders):
        assert leftovers(folder) == [], step
        assert models_of(folder) == disk[index], step
        assert history(folder) == [*stage.known[index], *done], step
        check_served(stage, index, edit, members, step)


def check_served(stage: Stage, index: int, edit: Edit, members: Members | None, step: str) -> None:
    """Check that a server answers as numpy does, serves what is on disk, and has loaded only the averaging models in use."""
    folder, client = stage.folders[index], stage.clients[index]
    assert answers_match(client, edit.ensemble, members), step
    shown = Ensembles(folder, client).show()
    assert {state.name: set(state.served.values()) for state in shown} == {state.name: {"yes"} for state in shown}, step
    used = set(filter(is_averaging, used_models(RepositoryView(folder))))
    assert set(filter(is_averaging, stage.ready(index))) == used, step


def walk(scene: Scene, edit_process: EditProcess, place: Path, begins: Sequence[str] = ()) -> list[EditResult]:
    """Kill the server at every call of an edit, or at the first call with each prefix; the edit must finish."""
    results = []
    with scene.staged(place / "stage", restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, scene.edit, kinds=["network"])
        for at in [number_of(whole.steps, begin) for begin in begins] or range(1, len(whole.steps) + 1):
            result = run_and_kill_server(stage, edit_process, scene.edit, at)
            if at > len(result.steps):
                break
            step = f"{at}: {result.steps[at - 1]}: {result.text}"
            assert result.error is None, step
            assert not result.left_loaded, step
            check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            results.append(result)
            stage.restore()
    return results


def test_edit_finishes_after_a_restart_at_some_calls(edit_process: EditProcess, tmp_path: Path) -> None:
    for result in walk(REWEIGH, edit_process, tmp_path, CALLS):
        assert any("restarted" in remark for remark in result.remarks)
        assert any("may be restarting" in line for line in result.progress)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_edit_finishes_after_a_restart_at_every_call(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], edit_process, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "add", "create", "delete", "reload of a batch size"])
def test_failed_edit_is_restored_after_a_restart_at_every_call(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    scene = SCENES[name]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, scene.edit, kinds=["network"])
        last = "after unload_model" if name == "delete" else "infer"
        failing = number_of(whole.steps, f"{last} {scene.edit.ensemble}")
        fail: dict[str, Any] = {"fault": "fail", "error": "failed"}
        back = edit_process.run(stage, scene.edit, failing, kinds=["network"], **fail)
        assert back.error == "EditFailedError"
        stage.restore()
        for at in range(failing + 1, len(back.steps) + 1):
            result = run_and_kill_server(stage, edit_process, scene.edit, failing, **fail, later={at: "kill_server"})
            if at > len(result.steps):
                assert result.error == "EditFailedError"
                break
            step = f"{at}: {result.steps[at - 1]}: {result.text}"
            # Inferences run at the same time as the one that fails: if the killed server is noticed first, they are all repeated.
            if result.error is None and result.steps[at - 1].startswith("infer "):
                check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            else:
                assert result.error == "EditFailedError", step
                assert any(stage.addresses[0][0] in line for line in result.put_back), step
                check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            stage.restore()


def test_server_that_dies_twice_is_restored(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, restart=True) as stage:
        whole, _, _ = run_completely(stage, edit_process, REWEIGH.edit, kinds=["network"])
        at = number_of(whole.steps, "load_model ensemble")
        result = run_and_kill_server(stage, edit_process, REWEIGH.edit, at, later={at + 2: "kill_server"})
        assert result.steps[at + 1] == "load_model ensemble"
        assert result.error == "EditFailedError"
        assert any(stage.addresses[0][0] in line for line in result.put_back)
        check_all(stage, REWEIGH.edit, REWEIGH.edit.before, stage.first, result.text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "point", "end"),
    [
        ("weight", "load_model average_", "undone"),
        ("weight", "load_model ensemble", "finished"),
        ("create", "load_model average_", "undone"),
        ("create", "load_model canary", "finished"),
        ("delete", "unload_model canary", "finished"),
        ("reload of a batch size", "load_model ensemble", "finished"),
    ],
)
def test_recovery_finishes_after_a_restart_at_every_call(
    edit_process: EditProcess, tmp_path: Path, name: str, point: str, end: str
) -> None:
    scene = SCENES[name]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, scene.edit)
        editor_dies = number_of(whole.steps, point)
        assert edit_process.run(stage, scene.edit, editor_dies).status == -9
        recovery = edit_process.run(stage, SHOW, 0, fault="count", kinds=["network"])
        assert end in "\n".join(recovery.warnings)
        stage.restore()
        for at in range(1, len(recovery.steps) + 1):
            assert edit_process.run(stage, scene.edit, editor_dies).status == -9
            result = run_and_kill_server(stage, edit_process, SHOW, at)
            if at > len(result.steps):
                break
            step = f"{at}: {result.steps[at - 1]}: {result.text}"
            assert result.error is None, step
            stage.tidy()  # removes leftovers without a journal
            if end == "finished":
                check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            else:
                check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_replicas_restarts_at_every_call(edit_process: EditProcess, tmp_path: Path, index: int) -> None:
    with REWEIGH.staged(tmp_path / "stage", replicas=2, restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, REWEIGH.edit, kinds=["network"])
        for at in range(1, len(whole.steps) + 1):
            result = run_and_kill_server(stage, edit_process, REWEIGH.edit, at, index=index)
            if at > len(result.steps):
                break
            step = f"{at}: {result.steps[at - 1]}: {result.text}"
            assert result.error is None, step
            check_all(stage, REWEIGH.edit, REWEIGH.edit.after, new, step, "weight")
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "delete"])
def test_edit_handles_an_unnoticed_restart_at_every_step(edit_process: EditProcess, tmp_path: Path, name: str) -> None:
    """The edit pauses at each step until the server is back, so it does not notice that its models are no longer loaded."""
    scene = SCENES[name]
    both = ["files", "network"]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, scene.edit)
        ends = set()
        for at in range(1, len(whole.steps) + 1):
            result = run_and_kill_server(stage, edit_process, scene.edit, at, fault="restart_server", kinds=both)
            if at > len(result.steps):
                break
            step = f"{at}: {result.steps[at - 1]}: {result.text}"
            # The restart may report models that the edit unloads during its checks.
            restarted = [event for event in stage.servers[0].events() if event.kind == "restarted"][-1]
            assert not set(restarted.facts["problems"]) & used_models(RepositoryView(stage.folders[0])), step
            assert result.error in (None, "EditFailedError"), step
            if result.error is None:
                check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            else:
                check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            ends.add(result.error)
            stage.restore()
        assert None in ends


@pytest.mark.slow
def test_a_hanging_server_is_killed_and_the_edit_finishes(edit_process: EditProcess, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, restart=True) as stage:
        whole, new, _ = run_completely(stage, edit_process, REWEIGH.edit, kinds=["network"])
        result = run_and_kill_server(stage, edit_process, REWEIGH.edit, number_of(whole.steps, "load_model ensemble"), fault="stop_server")
        assert result.error is None, result.text
        assert [event.kind for event in stage.servers[0].events()] == ["started", "hung", "restarted"]
        check_all(stage, REWEIGH.edit, REWEIGH.edit.after, new, result.text, "weight")


@pytest.mark.slow
def test_prune_finishes_while_the_server_restarts(edit_process: EditProcess, tmp_path: Path) -> None:
    prune = Edit("prune", [], None, None, {"keep_edits": 0})
    with SCENES["switch"].staged(tmp_path, restart=True) as stage:
        stage.ensembles().add("ensemble", ["gamma"])
        stage.ensembles().add("ensemble", ["alpha@2"], in_place_of="alpha@1")
        stage.ensembles().remove("ensemble", ["gamma"])
        stage.clients[0].transport.load_model("gamma", 10.0)
        stage.note()
        whole = edit_process.run(stage, prune, 0, fault="count", kinds=["network"])
        assert whole.error is None
        pruned = models_of(stage.folders[0])
        assert not {"gamma", "alpha/1", "alpha/1/model.onnx"} & set(pruned)
        stage.restore()
        for at in range(1, len(whole.steps) + 1):
            result = run_and_kill_server(stage, edit_process, prune, at)
            if at > len(result.steps):
                break
            assert result.error is None, result.text
            assert models_of(stage.folders[0]) == pruned
            assert stage.ready(0) == {path.partition("/")[0] for path in pruned}
            check_served(stage, 0, prune, SWITCHED, result.steps[at - 1])
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_an_edit_that_starts_during_a_restart(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_models, "RESTART_WAIT_S", 30.0)  # for a busy machine
    with REWEIGH.staged(tmp_path, restart=True) as stage:
        (server,) = stage.servers
        url = server.http_url if kind == "http" else server.grpc_url
        with Client(url, admin_key=server.state.admin_key) as client:
            ensembles = Ensembles(stage.folders[0], client)
            for weight, verb in ((3.0, "weight"), (1.0, "rollback")):
                before = server.triton_pid
                os.kill(before, signal.SIGKILL)
                if verb == "weight":
                    ensembles.weight("ensemble", {"alpha": weight})
                else:
                    ensembles.rollback()
                stage.wait_restarted(0, before)
                check_served(stage, 0, REWEIGH.edit, Members({"alpha@1": weight, "beta@1": 1.0}), verb)
        assert history(stage.folders[0]) == ["weight", "rollback"]
