"""The history records every edit, and rollbacks restore earlier states byte for byte."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from defensemble import InputError
from defensemble.ensembles import Applied, EditRefusedError, Ensembles
from defensemble.ensembles.edit import EditRunner
from defensemble_export import EnsembleError, HistoryError, planned_files, write_files
from defensemble_export.editing.history import current_user
from defensemble_repository.ensemble import Ensemble, Member
from tests.support import tiny
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.tiny import content
from tests.support.world import ABC, World, calling


@pytest.fixture
def editor(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def own(world: World, name: str = "ensemble") -> dict[str, bytes | None]:
    """Return the ensemble's own files."""
    return content(world.folder / name)


def test_the_history_records_time_user_changes_and_message(world: World, editor: Ensembles) -> None:
    start = datetime.now(timezone.utc) - timedelta(seconds=2)
    before = hashlib.sha256((world.folder / "ensemble/config.pbtxt").read_bytes()).hexdigest()
    applied = editor.weight("ensemble", {"b": 2.0}, message="does best on the new camera: 100 % äöü\n")
    editor.create("canary", ["d"])
    first, second = editor.history()
    assert applied.edit == first
    assert (first.ensemble, first.action, first.who) == ("ensemble", "weight", current_user())
    assert first.message == "does best on the new camera: 100 % äöü\n"
    assert start <= datetime.fromisoformat(first.time) <= datetime.now(timezone.utc)
    assert_each(first.changes, "weight | b@1 | 1 -> 2 | 33.3 % -> 50.0 %")
    assert first.before is not None
    assert first.after is not None
    after = hashlib.sha256((world.folder / "ensemble/config.pbtxt").read_bytes()).hexdigest()
    assert (first.before.digests["config.pbtxt"], first.after.digests["config.pbtxt"]) == (before, after)
    model = hashlib.sha256((world.folder / "a/1/model.onnx").read_bytes()).hexdigest()
    assert first.after.digests["a@1"] == model
    assert (second.before, second.action, second.message) == (None, "create", None)
    assert editor.history("canary") == [second]


def test_rollbacks_undo_and_redo_edits_byte_for_byte(world: World, editor: Ensembles) -> None:
    states = [own(world)]
    editor.weight("ensemble", {"a": 2.0})
    states.append(own(world))
    editor.average("ensemble", "logits")
    states.append(own(world))
    editor.add("ensemble", ["d"], weight=0.5)
    states.append(own(world))
    ids = [edit.id for edit in editor.history()]
    editor.rollback()
    assert own(world) == states[2]
    editor.rollback(message="and one more")
    assert own(world) == states[1]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    back = editor.history()[-1]
    assert (back.action, back.undoes, back.message) == ("rollback", (ids[1],), "and one more")
    with calling(world.server.http_url) as callers:
        forward = editor.rollback(to=ids[2])
    assert forward.edit is not None
    assert ids[2] in (forward.edit.message or "")
    assert own(world) == states[3]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0, "d@1": 0.5}, "logits")
    callers.check([({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0}, "probabilities"), ({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0, "d@1": 0.5}, "logits")])
    editor.rollback(2)
    assert own(world) == states[0]
    world.check(ABC)
    with raises(InputError, "'ensemble' | 0 edits | 1"):
        editor.rollback()


def test_rollback_to_an_edit_restores_its_result(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"a": 2.0})
    first = own(world)
    editor.weight("ensemble", {"a": 3.0})
    editor.weight("ensemble", {"a": 4.0})
    number = editor.history()[0].id
    editor.rollback(to=number)
    assert own(world) == first
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    with raises(InputError, f"{number} | 'ensemble'"):
        editor.rollback(to=number)


def test_rollback_undoes_creation_and_deletion(world: World, editor: Ensembles) -> None:
    editor.create("canary", ["d", "b"], weights={"b": 3.0})
    files_after = own(world, "canary")
    applied = editor.rollback()
    assert_each(applied.changes, "deletes | canary")
    assert not (world.folder / "canary").exists()
    assert "canary" not in world.loaded()
    editor.rollback(to=editor.history()[0].id)
    assert own(world, "canary") == files_after
    world.check({"d@1": 1.0, "b@2": 3.0}, name="canary")
    editor.delete("canary")
    assert "d" not in world.loaded()
    editor.rollback()
    assert own(world, "canary") == files_after
    world.check({"d@1": 1.0, "b@2": 3.0}, name="canary")
    world.check(ABC)


def test_rollback_defaults_to_the_last_edited_ensemble(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"a": 2.0})
    editor.create("canary", ["d"])
    editor.rollback(name="ensemble")
    world.check(ABC)
    editor.average("canary", "logits")
    assert editor.rollback().ensemble == "canary"
    world.check({"d@1": 1.0}, name="canary")


def test_rollback_undoes_unrecorded_changes_first(world: World) -> None:
    warnings: list[str] = []
    with world.client() as client:
        editor = Ensembles(world.folder, client, on_warning=warnings.append)
        editor.weight("ensemble", {"a": 2.0})
        first = own(world)
        editor.weight("ensemble", {"a": 3.0})
        write_files(world.folder, planned_files(world.folder, [tiny.member("d", 4)], ensemble="ensemble", replace=True))
        editor.reload("ensemble")
        members = {"a@1": 3.0, "b@1": 1.0, "c@1": 1.0, **({"d@2": 1.0} if (world.folder / "d/2").exists() else {"d@1": 1.0})}
        assert [f"{member.model}@{member.version}" for member in editor.declared("ensemble").members] == list(members)
        assert editor.history()[-1].action == "reload"
        editor.rollback(2)
        assert own(world) == first
        world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
        assert warnings == []
        path = world.folder / "ensemble/config.pbtxt"
        path.write_bytes(b"# a comment is no edit\n" + path.read_bytes())
        editor.rollback()
        assert warnings == []
        world.check(ABC)
        editor.weight("ensemble", {"a": 5.0})
        last = own(world)
        write_files(world.folder, planned_files(world.folder, [tiny.member("e", 5)], ensemble="ensemble", replace=True))
        editor.rollback()
        assert own(world) == last, "only the unrecorded change is undone"
        assert len(warnings) == 1
        assert_facts(warnings[0], "'ensemble'")
        world.check({"a@1": 5.0, "b@1": 1.0, "c@1": 1.0})
        write_files(world.folder, planned_files(world.folder, [tiny.member("f", 6)], ensemble="ensemble", replace=True))
        editor.rollback(2)
        world.check(ABC)
        editor.weight("ensemble", {"a": 5.0})
        path.write_bytes(b"no parser takes this {\n" + path.read_bytes())
        assert editor.rollback(dry_run=True).dry_run
        editor.rollback()
    world.check({"a@1": 5.0, "b@1": 1.0, "c@1": 1.0})


def test_rollback_refuses_if_the_ensemble_changes_meanwhile(world: World, editor: Ensembles, monkeypatch: pytest.MonkeyPatch) -> None:
    editor.weight("ensemble", {"a": 2.0})
    path = world.folder / "ensemble/labels.txt"
    run = EditRunner.run

    def edits_by_hand_first(runner: EditRunner, *arguments: Any, **options: Any) -> Applied:
        path.write_bytes(b"one\ntwo\nthree\n")
        return run(runner, *arguments, **options)

    monkeypatch.setattr(EditRunner, "run", edits_by_hand_first)
    history = editor.history()
    with raises(InputError, "'ensemble' | meanwhile"):
        editor.rollback()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert editor.history() == history
    monkeypatch.undo()
    editor.rollback()
    assert path.read_bytes() != b"one\ntwo\nthree\n"
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})


def test_rollback_generates_deleted_averaging_models(world: World, editor: Ensembles) -> None:
    config = world.folder / "ensemble/config.pbtxt"
    first = {step: content(world.folder / step) for step in world.averaging()}
    before = config.read_bytes()
    editor.weight("ensemble", {"a": 2.0})
    for model in first:
        shutil.rmtree(world.folder / model)
    editor.rollback()
    assert config.read_bytes() == before
    assert {model: content(world.folder / model) for model in first} == first
    world.check(ABC)


def test_rollback_names_a_missing_member(world: World, editor: Ensembles) -> None:
    editor.add("ensemble", ["d"])
    editor.remove("ensemble", ["d"])
    shutil.rmtree(world.folder / "d")
    before = content(world.folder)
    with raises(EnsembleError, "d@1 | 'ensemble' | export it again"):
        editor.rollback()
    assert content(world.folder) == before


def test_rollback_reports_missing_edits(world: World, editor: Ensembles) -> None:
    with pytest.raises(InputError, match="no history"):
        editor.rollback()
    editor.weight("ensemble", {"a": 2.0})
    before = content(world.folder)
    invalid: list[tuple[Callable[[], object], str]] = [
        (lambda: editor.rollback(2), "'ensemble' | 1 edit | 2"),
        (lambda: editor.rollback(0), "1 or more | 0"),
        (lambda: editor.rollback(to="0123456789ab"), "0123456789ab | 'ensemble' | `defensemble ensemble history`"),
        (lambda: editor.rollback(name="canary"), "'canary' | 0 edits | 1"),
    ]
    for act, text in invalid:
        with raises(InputError, text):
            act()
    assert content(world.folder) == before


def test_a_damaged_history_stops_edits(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"a": 2.0})
    path = world.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    before = content(world.folder)
    warnings = "history.jsonl:1: | damaged"
    with raises(HistoryError, warnings):
        editor.rollback()
    with raises(HistoryError, warnings):
        editor.history()
    assert content(world.folder) == before


def test_rollback_refuses_a_member_whose_file_changed(world: World, editor: Ensembles) -> None:
    editor.add("ensemble", ["d"])
    editor.remove("ensemble", ["d"])
    path = world.folder / "d/1/model.onnx"
    path.write_bytes(tiny.linear_onnx(99))
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match="rollback 'ensemble'"):
        editor.rollback()
    assert content(world.folder) == before


def test_an_edit_after_a_rollback_can_be_undone(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"a": 2.0})
    editor.weight("ensemble", {"a": 3.0})
    editor.rollback()
    editor.apply(Ensemble("ensemble", (Member("a"), Member("d"))))
    editor.rollback()
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    editor.rollback()
    world.check(ABC)
