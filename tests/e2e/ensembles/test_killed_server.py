"""The server is killed in the middle of an edit, and nobody restarts it: the edit says what became of it, and another server goes on."""

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
from tests.support.walking import QUIET, Cut, Cutter, Edit, Stage, answers_as, history, leftovers, models_of

# Of an edit of weights: the first call, the end of the ensemble's load, and an unload.
LOOK_AT = ["repository_index", "after load_model ensemble", "unload_model average_"]


def step_models(scene: Scene, cutter: Cutter, place: Path) -> list[str]:
    """The calls that the edit makes."""
    with scene.staged(place) as stage:
        whole = cutter.cut(stage, scene.edit, 0, how="count", kinds=["network"])
        assert whole.error is None
        return list(whole.steps)


def killed_at(scene: Scene, cutter: Cutter, place: Path, at: int) -> Cut:
    """The edit whose server is killed before its `at`-th call, and a look at what is left."""
    edit = scene.edit
    with scene.staged(place) as stage:
        folder, old = stage.folders[0], stage.first[0]
        cut = cutter.cut(stage, edit, at, how="kill_server", kinds=["network"], server=stage.servers[0].state.pid)
        step = cut.steps[at - 1] if at <= len(cut.steps) else "none"
        committed = history(folder) != stage.known[0]
        if committed:
            assert cut.error is None, f"{step}: {cut.text}"
        else:
            assert cut.error in ("EditFailedError", "ConnectionFailedError"), f"{step}: {cut.text}"
            kept = {path: content for path, content in put_back(stage, edit, cut.steps[:at]).items() if path in old}
            assert kept == old, step
        known = stage.known[0]
    with serve(folder, QUIET) as again, Client(again.http_url, admin_key=again.state.admin_key) as client:
        # A weight that was edited by hand is not what the old average computes: so it was before, too.
        assert answers_as(client, edit.ensemble, edit.after if committed else edit.before), step
        Ensembles(folder, client).create("another", ["alpha"], dry_run=True)
        assert leftovers(folder) == []
        assert answers_as(client, edit.ensemble, edit.after if committed else edit.before), step
        assert committed or put_back(stage, edit, cut.steps[:at]) == old, step
        assert history(folder) == [*known, *([edit.verb] if committed else [])]
    return cut


def put_back(stage: Stage, edit: Edit, steps: Sequence[str]) -> dict[str, bytes | None]:
    """What a failed edit has left on disk, with a hand edit where the operator wrote it.

    Once a server was to load the hand edit, that is kept beside: what the server loads when it is started again is what it served before.
    """
    now, path = models_of(stage.folders[0]), f"{edit.ensemble}/config.pbtxt"
    rejected = now.pop(f"{path}.rejected", None)
    assert (rejected is not None) == (edit.by_hand and f"load_model {edit.ensemble}" in steps)
    if rejected is not None:
        batches = [config_from_pbtxt(text.decode(), edit.ensemble).max_batch_size for text in (now[path], rejected) if text is not None]
        assert batches == [8, 4]
        now[path] = rejected
    return now


def check_told(cut: Cut, at: int) -> None:
    """An edit that failed while it was carried out says at which step, why, and that the server could not be told."""
    if cut.error == "EditFailedError":
        assert cut.step
        assert "://127.0.0.1:" in cut.why
        assert "reached" in cut.text
        assert "next command" in cut.text
    elif cut.error is None:
        assert cut.left_loaded or cut.remarks or at == len(cut.steps)  # unless it was killed after its very last call


def test_the_server_is_killed_at_some_calls_of_an_edit_of_weights(cutter: Cutter, tmp_path: Path) -> None:
    steps = step_models(REWEIGH, cutter, tmp_path / "whole")
    kinds = []
    for begins in LOOK_AT:
        at = next(number for number, step in enumerate(steps, 1) if step.startswith(begins))
        cut = killed_at(REWEIGH, cutter, tmp_path / str(at), at)
        check_told(cut, at)
        kinds.append(cut.error)
    assert kinds == ["ConnectionFailedError", "EditFailedError", None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weight", "add", "create", "delete", "rollback", "switch", "reload of a batch size"])
def test_the_server_is_killed_at_every_call_of_an_edit(cutter: Cutter, tmp_path: Path, name: str) -> None:
    steps = step_models(SCENES[name], cutter, tmp_path / "whole")
    for at in range(1, len(steps) + 1):
        check_told(killed_at(SCENES[name], cutter, tmp_path / str(at), at), at)


def test_of_two_servers_one_is_killed_and_the_other_is_put_back(cutter: Cutter, tmp_path: Path) -> None:
    with REWEIGH.staged(tmp_path, replicas=2) as stage:
        whole = cutter.cut(stage, REWEIGH.edit, 0, how="count", kinds=["network"])
        stage.restore()
        at = max(number for number, step in enumerate(whole.steps, 1) if step == "load_model ensemble")
        cut = cutter.cut(stage, REWEIGH.edit, at, how="kill_server", kinds=["network"], server=stage.servers[1].state.pid)
        assert cut.error == "EditFailedError"
        (first, _), (second, _) = stage.addresses
        assert cut.step == f"load 'ensemble' on {second}"
        assert any(first in line for line in cut.put_back)
        assert_facts(cut.text, f"{second} | reached")
        assert answers_as(stage.clients[0], "ensemble", REWEIGH.edit.before)
        configs = [(folder / "ensemble" / "config.pbtxt").read_bytes() for folder in stage.folders]
        assert configs == [first["ensemble/config.pbtxt"] for first in stage.first]
