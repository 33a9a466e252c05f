"""Interference during edits: other editors, hand edits, clocks, umasks, and clients that call members."""

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
from defensemble_export.editing.history import current_user, new_edit_id, read_snapshot, utc_now
from defensemble_export.editing.journal import EditJournal
from defensemble_export.editing.membership import set_weights
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


def interrupt_edit(folder: Path, group: list[str] | None = None) -> tuple[EditPlan, EditJournal]:
    """Write the journal and all files of an edit of weights, but not its history."""
    plan = plan_ensemble(folder, set_weights(read_ensemble(folder, "ensemble"), {"a": 5.0}))
    before, after = read_snapshot(RepositoryView(folder), "ensemble"), read_snapshot(plan.outcome(), "ensemble")
    edit = Edit(new_edit_id(), utc_now(), current_user(), "ensemble", "weight", None, ("weight of a",), (), before, after)
    journal = EditJournal.from_plan(plan, edit, group=group or [str(folder)], urls=[])
    journal.write()
    write_files(folder, plan.averaging)
    write_files(folder, plan.files)
    return plan, journal


def test_a_file_changed_during_the_edit_is_not_overwritten(world: World) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    by_ann = b"# Ann was here\n" + path.read_bytes()

    def on_progress(step: str) -> None:
        if step.startswith("compare average"):
            path.write_bytes(by_ann)

    with world.client() as client, pytest.raises(EditFailedError, match="changed") as caught:
        Ensembles(world.folder, client, on_progress=on_progress).weight("ensemble", {"a": 5.0})
    assert path.read_bytes() == by_ann
    assert any("another program" in line for line in caught.value.restore_report)
    world.check(ABC)


def test_a_file_changed_during_the_checks_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_world(tmp_path / "repository")
    path = folder / "ensemble/config.pbtxt"
    by_ann = b"# Ann was here\n" + path.read_bytes()
    plan_and_check = EditRunner._plan_and_check

    def then_saved(*arguments: Any) -> Any:
        checked = plan_and_check(*arguments)
        path.write_bytes(by_ann)
        return checked

    monkeypatch.setattr(EditRunner, "_plan_and_check", then_saved)
    with pytest.raises(EditRefusedError, match="changed while the edit was checked"):
        Ensembles(folder).weight("ensemble", {"a": 5.0})
    assert path.read_bytes() == by_ann
    assert not (folder / "pending-edit.json").exists()


def test_a_hand_edit_after_an_interrupted_edit_is_kept_as_rejected(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    old = (folder / "ensemble/config.pbtxt").read_bytes()
    interrupt_edit(folder)
    by_ann = b"# Ann was here\n" + (folder / "ensemble/config.pbtxt").read_bytes()
    (folder / "ensemble/config.pbtxt").write_bytes(by_ann)
    warnings: list[str] = []
    assert Ensembles(folder, on_warning=warnings.append).show("ensemble")[0].ensemble == read_ensemble(folder, "ensemble")
    assert (folder / "ensemble/config.pbtxt").read_bytes() == old
    assert (folder / "ensemble/config.pbtxt.rejected").read_bytes() == by_ann
    assert [line for line in warnings if "another program" in line]


def test_an_export_refuses_to_write_before_recovery(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    interrupt_edit(folder)
    with pytest.raises(LockedError, match="`defensemble ensemble show"), locked(folder):
        pass
    Ensembles(folder).show("ensemble")
    with locked(folder):
        assert [member.weight for member in read_ensemble(folder, "ensemble").members] == [5.0, 1.0, 1.0], "the edit is finished"


def test_recovery_refuses_if_a_replica_is_missing(tmp_path: Path) -> None:
    folder, away = write_world(tmp_path / "one/repository"), tmp_path / "two/repository"
    shutil.copytree(folder, away)
    interrupt_edit(folder, [str(folder), str(away)])
    shutil.move(away, tmp_path / "elsewhere")
    before = tiny.content(folder)
    with pytest.raises(InputError, match="reachable"):
        Ensembles(folder).weight("ensemble", {"a": 9.0})
    assert tiny.content(folder) == before


def test_the_repository_folder_is_locked_too(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "repository")
    with folder_lock(folder, fcntl.LOCK_EX), pytest.raises(LockedError, match="within 0 s"):
        Ensembles(folder, wait_s=0).weight("ensemble", {"a": 5.0})


def test_occasional_requests_keep_a_member_loaded(world: World) -> None:
    with world.client() as client:
        editor = Ensembles(world.folder, client, idle_timeout_s=1.5)
        editor.add("ensemble", ["d"])
        stop, caught = threading.Event(), list[DefensembleError]()

        def call() -> None:
            with world.client() as own:
                while not stop.wait(0.3):
                    try:
                        own.predict(tiny.images(1), model="d")
                    except DefensembleError as error:
                        caught.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            applied = editor.remove("ensemble", ["d"])
        finally:
            stop.set()
            caller.join()
    assert caught == []
    assert [name for name in applied.left_loaded if name.startswith("d on ")]
    assert world.loaded()["d"] == [1]


def test_a_foreign_model_with_the_averaging_prefix_stays_loaded(world: World) -> None:
    shutil.copytree(world.folder / "d", world.folder / "average_depth")
    tiny.edit_config(world.folder, "average_depth", name="average_depth")
    with world.client() as client:
        client.transport.load_model("average_depth", 20)
        Ensembles(world.folder, client).weight("ensemble", {"a": 5.0})
        assert client.predict(tiny.images(1), model="average_depth").labels


def test_a_clock_set_back_does_not_hide_edits(world: World) -> None:
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


def test_written_files_get_the_permissions_of_the_repository(tmp_path: Path) -> None:
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
def test_an_unwritable_history_refuses_the_edit(tmp_path: Path, kind: str) -> None:
    folder = write_world(tmp_path / "repository")
    path = folder / "history.jsonl"
    path.mkdir() if kind == "a folder" else path.symlink_to(tmp_path / "nowhere")
    before = tiny.content(folder)
    with pytest.raises(HistoryError, match="away" if kind == "a folder" else "broken"):
        Ensembles(folder).weight("ensemble", {"a": 5.0})
    assert tiny.content(folder) == before


def test_the_number_of_members_is_limited() -> None:
    with raises(EnsembleError, "300 | 256"):
        Ensemble("e", tuple(Member(f"m{number}") for number in range(300)))
