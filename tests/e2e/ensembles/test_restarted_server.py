"""The server is killed in the middle of an edit, and its guard restarts it: the edit finishes, or everything is put back."""

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
from tests.support.walking import Cut, Cutter, Edit, Members, Stage, answers_as, history, leftovers, models_of, uncut

LOOK = Edit("show", [], None, None)
# Of an edit of weights: a call before the new configuration lies on disk, and one after it.
LOOK_AT = ["load_model average_", "after load_model ensemble"]


def number_of(steps: Sequence[str], begins: str, after: int = 0) -> int:
    """The number of the first step after another that begins so."""
    return next(number for number, step in enumerate(steps, 1) if number > after and step.startswith(begins))


def killed(stage: Stage, cutter: Cutter, edit: Edit, at: int, *, index: int = 0, **how: Any) -> Cut:
    """The edit at whose `at`-th call a server is killed, once that is restarted and its answers are checked."""
    server = stage.servers[index]
    before = server.triton_pid
    cut = cutter.cut(stage, edit, at, **{"how": "kill_server", "kinds": ["network"], "server": server.state.pid, **how})
    assert cut.status == 0
    # A server that is idle at once is asked fewer times whether it is: the edit can end before that call.
    if max([at, *how.get("later", ())]) <= len(cut.steps):
        stage.wait_restarted(index, before)
    return cut


def check_all(stage: Stage, edit: Edit, members: Members | None, disk: Sequence[Mapping[str, bytes | None]], step: str, *done: str) -> None:
    """Disk, history and servers hold the same state: that of `members`, with `disk`, and with `done` in the history."""
    for index, folder in enumerate(stage.folders):
        assert leftovers(folder) == [], step
        assert models_of(folder) == disk[index], step
        assert history(folder) == [*stage.known[index], *done], step
        check_served(stage, index, edit, members, step)


def check_served(stage: Stage, index: int, edit: Edit, members: Members | None, step: str) -> None:
    """A server answers as numpy does, serves what lies on disk, and has loaded the averaging models that are used, and no others."""
    folder, client = stage.folders[index], stage.clients[index]
    assert answers_as(client, edit.ensemble, members), step
    shown = Ensembles(folder, client).show()
    assert {state.name: set(state.served.values()) for state in shown} == {state.name: {"yes"} for state in shown}, step
    used = set(filter(is_averaging, used_models(RepositoryView(folder))))
    assert set(filter(is_averaging, stage.ready(index))) == used, step


def walk(scene: Scene, cutter: Cutter, place: Path, begins: Sequence[str] = ()) -> list[Cut]:
    """Kill the server at every call of an edit, or at the first of those that begin so each: the edit finishes."""
    cuts = []
    with scene.staged(place / "stage", restart=True) as stage:
        whole, new, _ = uncut(stage, cutter, scene.edit, kinds=["network"])
        for at in [number_of(whole.steps, begin) for begin in begins] or range(1, len(whole.steps) + 1):
            cut = killed(stage, cutter, scene.edit, at)
            if at > len(cut.steps):
                break
            step = f"{at}: {cut.steps[at - 1]}: {cut.text}"
            assert cut.error is None, step
            assert not cut.left_loaded, step
            check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            cuts.append(cut)
            stage.restore()
    return cuts


def test_an_edit_of_weights_finishes_at_some_of_its_calls(cutter: Cutter, tmp_path: Path) -> None:
    for cut in walk(REWEIGH, cutter, tmp_path, LOOK_AT):
        assert any("restarted" in remark for remark in cut.remarks)
        assert any("may be restarting" in said for said in cut.said)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCENES))
def test_an_edit_finishes_at_every_of_its_calls(cutter: Cutter, tmp_path: Path, name: str) -> None:
    walk(SCENES[name], cutter, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "add", "create", "delete", "reload of a batch size"])
def test_an_edit_that_fails_is_put_back_at_every_of_its_calls(cutter: Cutter, tmp_path: Path, name: str) -> None:
    scene = SCENES[name]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, _, _ = uncut(stage, cutter, scene.edit, kinds=["network"])
        last = "after unload_model" if name == "delete" else "infer"
        failing = number_of(whole.steps, f"{last} {scene.edit.ensemble}")
        fail: dict[str, Any] = {"how": "fail", "error": "failed"}
        back = cutter.cut(stage, scene.edit, failing, kinds=["network"], **fail)
        assert back.error == "EditFailedError"
        stage.restore()
        for at in range(failing + 1, len(back.steps) + 1):
            cut = killed(stage, cutter, scene.edit, failing, **fail, later={at: "kill_server"})
            assert cut.error == "EditFailedError"
            if at > len(cut.steps):
                break
            step = f"{at}: {cut.steps[at - 1]}: {cut.text}"
            assert any(stage.addresses[0][0] in line for line in cut.put_back), step
            check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            stage.restore()


def test_a_server_that_dies_twice_at_one_step_is_put_back(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, restart=True) as stage:
        whole, _, _ = uncut(stage, cutter, REWEIGH.edit, kinds=["network"])
        at = number_of(whole.steps, "load_model ensemble")
        cut = killed(stage, cutter, REWEIGH.edit, at, later={at + 2: "kill_server"})
        assert cut.steps[at + 1] == "load_model ensemble"
        assert cut.error == "EditFailedError"
        assert any(stage.addresses[0][0] in line for line in cut.put_back)
        check_all(stage, REWEIGH.edit, REWEIGH.edit.before, stage.first, cut.text)


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
def test_a_recovery_finishes_at_every_of_its_calls(cutter: Cutter, tmp_path: Path, name: str, point: str, end: str) -> None:
    scene = SCENES[name]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, new, _ = uncut(stage, cutter, scene.edit)
        editor_dies = number_of(whole.steps, point)
        assert cutter.cut(stage, scene.edit, editor_dies).status == -9
        recovery = cutter.cut(stage, LOOK, 0, how="count", kinds=["network"])
        assert end in "\n".join(recovery.warned)
        stage.restore()
        for at in range(1, len(recovery.steps) + 1):
            assert cutter.cut(stage, scene.edit, editor_dies).status == -9
            cut = killed(stage, cutter, LOOK, at)
            if at > len(cut.steps):
                break
            step = f"{at}: {cut.steps[at - 1]}: {cut.text}"
            assert cut.error is None, step
            stage.tidy()  # takes away what was never noted
            if end == "finished":
                check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            else:
                check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_two_replicas_restarts_at_every_call(cutter: Cutter, tmp_path: Path, index: int) -> None:
    with REWEIGH.staged(tmp_path / "stage", replicas=2, restart=True) as stage:
        whole, new, _ = uncut(stage, cutter, REWEIGH.edit, kinds=["network"])
        for at in range(1, len(whole.steps) + 1):
            cut = killed(stage, cutter, REWEIGH.edit, at, index=index)
            if at > len(cut.steps):
                break
            step = f"{at}: {cut.steps[at - 1]}: {cut.text}"
            assert cut.error is None, step
            check_all(stage, REWEIGH.edit, REWEIGH.edit.after, new, step, "weight")
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "delete"])
def test_a_server_loads_what_an_edit_has_written_so_far(cutter: Cutter, tmp_path: Path, name: str) -> None:
    """The edit stands still at each of its steps until the server is back: nothing tells it that its models are not loaded any more."""
    scene = SCENES[name]
    both = ["files", "network"]
    with scene.staged(tmp_path / "stage", restart=True) as stage:
        whole, new, _ = uncut(stage, cutter, scene.edit)
        ends = set()
        for at in range(1, len(whole.steps) + 1):
            cut = killed(stage, cutter, scene.edit, at, how="restart_server", kinds=both)
            if at > len(cut.steps):
                break
            step = f"{at}: {cut.steps[at - 1]}: {cut.text}"
            # It may report models that the edit unloads while it checks its answers.
            restarted = [event for event in stage.servers[0].events() if event.kind == "restarted"][-1]
            assert not set(restarted.facts["problems"]) & used_models(RepositoryView(stage.folders[0])), step
            assert cut.error in (None, "EditFailedError"), step
            if cut.error is None:
                check_all(stage, scene.edit, scene.edit.after, new, step, scene.edit.verb)
            else:
                check_all(stage, scene.edit, scene.edit.before, stage.first, step)
            ends.add(cut.error)
            stage.restore()
        assert None in ends


@pytest.mark.slow
def test_a_server_that_hangs_is_killed_and_the_edit_finishes(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, restart=True) as stage:
        whole, new, _ = uncut(stage, cutter, REWEIGH.edit, kinds=["network"])
        cut = killed(stage, cutter, REWEIGH.edit, number_of(whole.steps, "load_model ensemble"), how="stop_server")
        assert cut.error is None, cut.text
        assert [event.kind for event in stage.servers[0].events()] == ["started", "hung", "restarted"]
        check_all(stage, REWEIGH.edit, REWEIGH.edit.after, new, cut.text, "weight")


@pytest.mark.slow
def test_prune_finishes_while_the_server_restarts(cutter: Cutter, tmp_path: Path) -> None:
    prune = Edit("prune", [], None, None, {"keep": 0})
    with SCENES["switch"].staged(tmp_path, restart=True) as stage:
        stage.ensembles().add("ensemble", ["gamma"])
        stage.ensembles().add("ensemble", ["alpha@2"], in_place_of="alpha@1")
        stage.ensembles().remove("ensemble", ["gamma"])
        stage.clients[0].transport.load_model("gamma", 10.0)
        stage.note()
        whole = cutter.cut(stage, prune, 0, how="count", kinds=["network"])
        assert whole.error is None
        pruned = models_of(stage.folders[0])
        assert not {"gamma", "alpha/1", "alpha/1/model.onnx"} & set(pruned)
        stage.restore()
        for at in range(1, len(whole.steps) + 1):
            cut = killed(stage, cutter, prune, at)
            if at > len(cut.steps):
                break
            assert cut.error is None, cut.text
            assert models_of(stage.folders[0]) == pruned
            assert stage.ready(0) == {path.partition("/")[0] for path in pruned}
            check_served(stage, 0, prune, SWITCHED, cut.steps[at - 1])
            stage.restore()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_an_edit_that_begins_while_the_server_restarts(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
