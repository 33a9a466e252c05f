"""A hand edit that the server refuses: the served state is restored on disk, and the hand edit is saved as `config.pbtxt.rejected`."""

from __future__ import annotations

from pathlib import Path

import pytest

from defensemble.ensembles import EditFailedError
from defensemble_export import check_ensemble
from defensemble_repository.pbtxt import config_from_pbtxt
from defensemble_repository.view import RepositoryView
from tests.support.edits import BOTH, Scene, three_models
from tests.support.walking import Edit, EditProcess, Stage, answers_match, history, leftovers, stage_of

# Triton refuses the first while it loads the model, and the second earlier, when it reads the folder.
REFUSED = {
    "version": "version_policy { specific { versions: 7 } }\n",
    "agent": 'model_repository_agents { agents { name: "nobody" } }\n',
}
RELOAD = Edit("reload", ["ensemble"], BOTH, BOTH, by_hand=True)


def write_by_hand(folder: Path, text: str) -> bytes:
    """Add a line to the ensemble's configuration; return the new content."""
    path = folder / "ensemble" / "config.pbtxt"
    path.write_bytes(path.read_bytes() + text.encode())
    return path.read_bytes()


def check_rejected(stage: Stage, index: int, edited: bytes) -> None:
    """Check that the old ensemble is served and on disk, and that the hand edit is saved as rejected."""
    folder = stage.folders[index]
    path = folder / "ensemble" / "config.pbtxt"
    was = config_from_pbtxt(stage.first[index]["ensemble/config.pbtxt"].decode(), "was")  # type: ignore[union-attr]
    now = config_from_pbtxt(path.read_text(), "now")
    assert (now.ensemble_scheduling, now.max_batch_size) == (was.ensemble_scheduling, was.max_batch_size)
    assert (folder / "ensemble" / "config.pbtxt.rejected").read_bytes() == edited
    assert answers_match(stage.clients[index], "ensemble", BOTH)
    assert stage.ready(index) == stage.loaded[index]
    assert history(folder) == []
    assert leftovers(folder) == []


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refused_hand_edit_is_saved_as_rejected(tmp_path: Path, kind: str) -> None:
    with stage_of(tmp_path, three_models) as stage:
        folder = stage.folders[0]
        edited = write_by_hand(folder, REFUSED[kind])
        assert [finding for finding in check_ensemble(RepositoryView(folder), "ensemble") if finding.is_error] == []
        with pytest.raises(EditFailedError) as caught:
            stage.ensembles().reload("ensemble")
        assert caught.value.step == f"load 'ensemble' on {stage.addresses[0][0]}"
        assert "failed" in caught.value.reason
        rejected = folder / "ensemble" / "config.pbtxt.rejected"
        assert any(str(rejected) in line for line in caught.value.restore_report)
        check_rejected(stage, 0, edited)
        shown = stage.ensembles().show("ensemble")[0]
        assert shown.served == {stage.addresses[0][0]: "yes"}
        assert stage.ensembles().reload("ensemble")[0].changes == ()


def test_a_refused_hand_edit_in_another_edit_is_saved_as_rejected(tmp_path: Path) -> None:
    with stage_of(tmp_path, three_models) as stage:
        edited = write_by_hand(stage.folders[0], REFUSED["version"])
        with pytest.raises(EditFailedError) as caught:
            stage.ensembles().average("ensemble", "logits")
        assert caught.value.step == f"load 'ensemble' on {stage.addresses[0][0]}"
        check_rejected(stage, 0, edited)
        assert stage.ensembles().average("ensemble", "logits").remarks == ()


def test_a_hand_edit_refused_by_one_replica_is_rejected_only_there(tmp_path: Path) -> None:
    with stage_of(tmp_path, three_models, replicas=2) as stage:
        edited = [write_by_hand(folder, text) for folder, text in zip(stage.folders, ["", REFUSED["version"]], strict=True)]
        with pytest.raises(EditFailedError) as caught:
            stage.ensembles().reload("ensemble")
        assert stage.addresses[1][0] in caught.value.step
        assert not (stage.folders[0] / "ensemble" / "config.pbtxt.rejected").exists()
        assert (stage.folders[0] / "ensemble" / "config.pbtxt").read_bytes() == edited[0]
        check_rejected(stage, 1, edited[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_a_refused_hand_edit_killed_at_every_step(edit_process: EditProcess, tmp_path: Path, kind: str) -> None:
    scene = Scene(RELOAD, three_models)
    with scene.staged(tmp_path) as stage:
        folder, rejected = stage.folders[0], stage.folders[0] / "ensemble" / "config.pbtxt.rejected"
        edited = write_by_hand(folder, REFUSED[kind])
        whole = edit_process.run(stage, RELOAD, 0, fault="count")
        assert whole.error == "EditFailedError"
        assert rejected.read_bytes() == edited
        stage.restore()
        kept = set()
        for at, step in enumerate(whole.steps, 1):
            assert write_by_hand(folder, REFUSED[kind]) == edited
            assert edit_process.run(stage, RELOAD, at).status == -9
            stage.ensembles().show()
            stage.tidy()
            assert leftovers(folder) == [], step
            assert answers_match(stage.clients[0], "ensemble", BOTH), step
            kept.add(rejected.exists())
            if rejected.exists():
                check_rejected(stage, 0, edited)
            else:
                assert (folder / "ensemble" / "config.pbtxt").read_bytes() == edited, step
            stage.restore()
        assert kept == {True, False}
