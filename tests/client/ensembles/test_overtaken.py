"""Others at the same files and models: other editors, hands, clocks and umasks, callers by name."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from defensemble import DefensembleError, InputError
from defensemble.ensembles import EditFailedError, EditRefusedError, Ensembles
from defensemble.ensembles.edit import EditRunner
from defensemble_export import EnsembleError, HistoryError, write_files
from defensemble_export.editing import Edit
from defensemble_export.editing.history import new_id, now_text, read_snapshot, this_user
from defensemble_export.editing.journal import EditJournal
from defensemble_export.editing.membership import reweighted
from defensemble_export.editing.plan import EditPlan, plan_ensemble
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import LockedError
from defensemble_repository.filesystem.locks import folder_lock
from defensemble_repository.lock import locked
from defensemble_repository.reader import read_ensemble
from defensemble_repository.view import RepositoryView
from tests.support import tiny
from tests.support.facts import raises
from tests.support.world import ABC, World, write_world


def cut_short(folder: Path, group: list[str] | None = None) -> tuple[EditPlan, EditJournal]:
    """An edit of weights that was noted, and got as far as its last file."""
    plan = plan_ensemble(folder, reweighted(read_ensemble(folder, "ensemble"), {"a": 5.0}))
    before, after = read_snapshot(RepositoryView(folder), "ensemble"), read_snapshot(plan.outcome(), "ensemble")
    edit = Edit(new_id(), now_text(), this_user(), "ensemble", "weight", None, ("weight of a",), (), before, after)
    journal = EditJournal.of(plan, edit, group=group or [str(folder)], urls=[])
    journal.write()
    write_files(folder, plan.averaging)
    write_files(folder, plan.files)
    return plan, journal


def test_a_file_that_somebody_saves_meanwhile_is_not_written_over(world: World) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    by_ann = b"# Ann was here\n" + path.read_bytes()

    def on_progress(step: str) -> None:
        if step.startswith("ask the members"):
            path.write_bytes(by_ann)

    with world.client() as client, pytest.raises(EditFailedError, match="changed") as failed:
        Ensembles(world.folder, client, on_progress=on_progress).weight("ensemble", {"a": 5.0})
    assert path.read_bytes() == by_ann
    assert any("somebody else" in line for line in failed.value.put_back)
    world.check(ABC)


def test_a_file_that_somebody_saves_while_the_edit_is_checked_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_world(tmp_path / "repository")
    path = folder / "ensemble/config.pbtxt"
    by_ann = b"# Ann was here\n" + path.read_bytes()
    plan_and_check = EditRunner._plan_and_check

    def then_saved(*arguments: Any) -> Any:
        checked = plan_and_check(*arguments)
        path.write_bytes(by_ann)
        return checked

    monkeypatch.setattr(EditRunner, "_plan_and_check", then_saved)
    with pytest.raises(EditRefusedError, match="was changed while this was checked: make the edit again"):
        Ensembles(folder).weight("ensemble", {"a": 5.0})
    assert path.read_bytes() == by_ann
    assert not (folder / "pending-edit.json").exists()


def test_what_a_hand_makes_of_an_edit_that_was_cut_short_is_kept_beside(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    old = (folder / "ensemble/config.pbtxt").read_bytes()
    cut_short(folder)
    by_ann = b"# Ann was here\n" + (folder / "ensemble/config.pbtxt").read_bytes()
    (folder / "ensemble/config.pbtxt").write_bytes(by_ann)
    told: list[str] = []
    assert Ensembles(folder, on_warning=told.append).show("ensemble")[0].votes == read_ensemble(folder, "ensemble")
    assert (folder / "ensemble/config.pbtxt").read_bytes() == old
    assert (folder / "ensemble/config.pbtxt.rejected").read_bytes() == by_ann
    assert [line for line in told if "somebody else" in line]


def test_an_export_waits_for_an_edit_that_was_cut_short(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    cut_short(folder)
    with pytest.raises(LockedError, match="`defensemble ensemble show"), locked(folder):
        pass
    Ensembles(folder).show("ensemble")
    with locked(folder):
        assert [vote.weight for vote in read_ensemble(folder, "ensemble").members] == [5.0, 1.0, 1.0], "it was finished"


def test_where_a_folder_of_the_edit_is_away_nothing_is_guessed(tmp_path: Path) -> None:
    folder, away = write_world(tmp_path / "one/repository"), tmp_path / "two/repository"
    shutil.copytree(folder, away)
    cut_short(folder, [str(folder), str(away)])
    shutil.move(away, tmp_path / "elsewhere")
    before = tiny.content(folder)
    with pytest.raises(InputError, match="reachable"):
        Ensembles(folder).weight("ensemble", {"a": 9.0})
    assert tiny.content(folder) == before


def test_the_repository_itself_is_locked_for_those_who_see_it_elsewhere(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    with folder_lock(folder, fcntl.LOCK_EX), pytest.raises(LockedError, match="within 0 s"):
        Ensembles(folder, wait_s=0).weight("ensemble", {"a": 5.0})


def test_who_calls_a_member_by_its_name_now_and_then_keeps_it(world: World) -> None:
    with world.client() as client:
        editor = Ensembles(world.folder, client, drain_s=1.5)
        editor.add("ensemble", ["d"])
        stop, failed = threading.Event(), list[DefensembleError]()

        def call() -> None:
            with world.client() as own:
                while not stop.wait(0.3):
                    try:
                        own.predict(tiny.images(1), model="d")
                    except DefensembleError as error:
                        failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            done = editor.remove("ensemble", ["d"])
        finally:
            stop.set()
            caller.join()
    assert failed == []
    assert [name for name in done.left_loaded if name.startswith("d on ")]
    assert world.loaded()["d"] == [1]


def test_a_model_of_somebody_elses_whose_name_begins_as_ours_do_stays(world: World) -> None:
    shutil.copytree(world.folder / "d", world.folder / "average_depth")
    tiny.edit_config(world.folder, "average_depth", name="average_depth")
    with world.client() as client:
        client.transport.load_model("average_depth", 20)
        Ensembles(world.folder, client).weight("ensemble", {"a": 5.0})
        assert client.predict(tiny.images(1), model="average_depth").labels


def test_a_clock_that_was_put_back_hides_no_edit(world: World) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    later = time.time() + 3600
    os.utime(path, (later, later))
    with world.client() as client:
        client.transport.load_model("ensemble", 20)
        editor = Ensembles(world.folder, client)
        editor.weight("ensemble", {"a": 5.0})
        world.check({**ABC, "a@1": 5.0})
        editor.rollback()
    world.check(ABC)


def test_what_an_editor_with_a_narrow_umask_writes_can_be_read_by_whom_the_repository_can(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = os.umask(0o077)
    try:
        Ensembles(folder).weight("ensemble", {"a": 5.0})
        Ensembles(folder).create("other", ["a", "b"])
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_file()} == {"0o644"}
    assert {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path.is_dir()} == {"0o755"}


@pytest.mark.parametrize("kind", ["a folder", "a link that leads nowhere"])
def test_a_history_that_cannot_be_written_is_found_before_anything_changes(tmp_path: Path, kind: str) -> None:
    folder = write_world(tmp_path / "repository")
    path = folder / "history.jsonl"
    path.mkdir() if kind == "a folder" else path.symlink_to(tmp_path / "nowhere")
    before = tiny.content(folder)
    with pytest.raises(HistoryError, match="away" if kind == "a folder" else "nowhere"):
        Ensembles(folder).weight("ensemble", {"a": 5.0})
    assert tiny.content(folder) == before


def test_there_is_an_end_to_how_many_vote() -> None:
    with raises(EnsembleError, "300 | 256"):
        Ensemble("e", tuple(Member(f"m{number}") for number in range(300)))
