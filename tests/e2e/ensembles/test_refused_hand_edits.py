"""A hand edit that the server refuses: what was served before serves on, and lies on disk again; the hand edit is kept beside, and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble.ensembles import EditFailedError
from defensemble_export import check_ensemble
from defensemble_repository.pbtxt import config_from_pbtxt
from defensemble_repository.view import RepositoryView
from tests.support.edits import BOTH, Scene, three_models
from tests.support.walking import Cutter, Edit, Stage, answers_as, history, leftovers, stage_of

# Triton refuses the first while it loads, and the second before, when it reads the folder.
REFUSED = {
    "version": "version_policy { specific { versions: 7 } }\n",
    "agent": 'model_repository_agents { agents { name: "nobody" } }\n',
}
RELOAD = Edit("reload", ["ensemble"], BOTH, BOTH, by_hand=True)


def write_by_hand(folder: Path, text: str) -> bytes:
    """Adds a line to the ensemble's configuration; what it is then."""
    path = folder / "ensemble" / "config.pbtxt"
    path.write_bytes(path.read_bytes() + text.encode())
    return path.read_bytes()


def check_turned_back(stage: Stage, index: int, edited: bytes) -> None:
    """The old ensemble serves and lies on disk, and the hand edit beside it."""
    folder = stage.folders[index]
    path = folder / "ensemble" / "config.pbtxt"
    was = config_from_pbtxt(stage.first[index]["ensemble/config.pbtxt"].decode(), "was")  # type: ignore[union-attr]
    now = config_from_pbtxt(path.read_text(), "now")
    assert (now.ensemble_scheduling, now.max_batch_size) == (was.ensemble_scheduling, was.max_batch_size)
    assert (folder / "ensemble" / "config.pbtxt.rejected").read_bytes() == edited
    assert answers_as(stage.clients[index], "ensemble", BOTH)
    assert stage.ready(index) == stage.loaded[index]
    assert history(folder) == []
    assert leftovers(folder) == []


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_hand_edit_that_the_server_refuses_goes_beside(tmp_path: Path, kind: str) -> None:
    with stage_of(tmp_path, three_models) as stage:
        folder = stage.folders[0]
        edited = write_by_hand(folder, REFUSED[kind])
        assert [finding for finding in check_ensemble(RepositoryView(folder), "ensemble") if finding.is_error] == []
        with pytest.raises(EditFailedError) as failed:
            stage.ensembles().reload("ensemble")
        assert failed.value.step == f"load 'ensemble' on {stage.addresses[0][0]}"
        assert "failed" in failed.value.why
        rejected = folder / "ensemble" / "config.pbtxt.rejected"
        assert any(str(rejected) in line for line in failed.value.put_back)
        check_turned_back(stage, 0, edited)
        shown = stage.ensembles().show("ensemble")[0]
        assert shown.served == {stage.addresses[0][0]: "yes"}
        assert stage.ensembles().reload("ensemble")[0].changes == ()


def test_a_hand_edit_that_another_edit_would_take_up_goes_beside_too(tmp_path: Path) -> None:
    with stage_of(tmp_path, three_models) as stage:
        edited = write_by_hand(stage.folders[0], REFUSED["version"])
        with pytest.raises(EditFailedError) as failed:
            stage.ensembles().average("ensemble", "logits")
        assert failed.value.step == f"load 'ensemble' on {stage.addresses[0][0]}"
        check_turned_back(stage, 0, edited)
        assert stage.ensembles().average("ensemble", "logits").remarks == ()


def test_a_hand_edit_of_two_replicas_of_which_one_refuses_it_goes_beside_in_both(tmp_path: Path) -> None:
    with stage_of(tmp_path, three_models, replicas=2) as stage:
        edited = [write_by_hand(folder, text) for folder, text in zip(stage.folders, ["", REFUSED["version"]], strict=True)]
        with pytest.raises(EditFailedError) as failed:
            stage.ensembles().reload("ensemble")
        assert stage.addresses[1][0] in failed.value.step
        assert not (stage.folders[0] / "ensemble" / "config.pbtxt.rejected").exists()
        assert (stage.folders[0] / "ensemble" / "config.pbtxt").read_bytes() == edited[0]
        check_turned_back(stage, 1, edited[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_hand_edit_that_the_server_refuses_is_killed_at_each_of_its_steps(cutter: Cutter, tmp_path: Path, kind: str) -> None:
    scene = Scene(RELOAD, three_models)
    with scene.staged(tmp_path) as stage:
        folder, rejected = stage.folders[0], stage.folders[0] / "ensemble" / "config.pbtxt.rejected"
        edited = write_by_hand(folder, REFUSED[kind])
        whole = cutter.cut(stage, RELOAD, 0, how="count")
        assert whole.error == "EditFailedError"
        assert rejected.read_bytes() == edited
        stage.restore()
        kept = set()
        for at, step in enumerate(whole.steps, 1):
            assert write_by_hand(folder, REFUSED[kind]) == edited
            assert cutter.cut(stage, RELOAD, at).status == -9
            stage.ensembles().show()
            stage.tidy()
            assert leftovers(folder) == [], step
            assert answers_as(stage.clients[0], "ensemble", BOTH), step
            kept.add(rejected.exists())
            if rejected.exists():
                check_turned_back(stage, 0, edited)
            else:
                assert (folder / "ensemble" / "config.pbtxt").read_bytes() == edited, step
            stage.restore()
        assert kept == {True, False}
