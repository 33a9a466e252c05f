"""What was edited is kept with time, person and reason, and undone by one call, to the byte."""

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
from defensemble_export import EnsembleError, HistoryError, repository_plan, write_files
from defensemble_export.editing.history import this_user
from defensemble_repository.ensemble import Ensemble, Member
from tests.support import tiny
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.tiny import content
from tests.support.world import ABC, World, calling


@pytest.fixture
def one(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def own(world: World, name: str = "ensemble") -> dict[str, bytes | None]:
    """The ensemble's own files."""
    return content(world.folder / name)


def test_the_history_tells_when_who_what_and_why(world: World, one: Ensembles) -> None:
    began = datetime.now(timezone.utc) - timedelta(seconds=2)
    before = hashlib.sha256((world.folder / "ensemble/config.pbtxt").read_bytes()).hexdigest()
    done = one.weight("ensemble", {"b": 2.0}, message="does best on the new camera: 100 % äöü\n")
    one.create("canary", ["d"])
    first, second = one.history()
    assert done.edit == first
    assert (first.ensemble, first.action, first.who) == ("ensemble", "weight", this_user())
    assert first.message == "does best on the new camera: 100 % äöü\n"
    assert began <= datetime.fromisoformat(first.time) <= datetime.now(timezone.utc)
    assert_each(first.changes, "weight | b@1 | 1 -> 2 | 33.3 % -> 50.0 %")
    assert first.before is not None
    assert first.after is not None
    after = hashlib.sha256((world.folder / "ensemble/config.pbtxt").read_bytes()).hexdigest()
    assert (first.before.digests["config.pbtxt"], first.after.digests["config.pbtxt"]) == (before, after)
    model = hashlib.sha256((world.folder / "a/1/model.onnx").read_bytes()).hexdigest()
    assert first.after.digests["a@1"] == model
    assert (second.before, second.action, second.message) == (None, "create", None)
    assert one.history("canary") == [second]


def test_rollbacks_go_back_edit_by_edit_and_forward_again_to_the_byte(world: World, one: Ensembles) -> None:
    states = [own(world)]
    one.weight("ensemble", {"a": 2.0})
    states.append(own(world))
    one.average("ensemble", "logits")
    states.append(own(world))
    one.add("ensemble", ["d"], weight=0.5)
    states.append(own(world))
    ids = [edit.id for edit in one.history()]
    one.rollback()
    assert own(world) == states[2]
    one.rollback(message="and one more")
    assert own(world) == states[1]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    back = one.history()[-1]
    assert (back.action, back.undoes, back.message) == ("rollback", (ids[1],), "and one more")
    with calling(world.server.http_url) as callers:
        forward = one.rollback(to=ids[2])
    assert forward.edit is not None
    assert ids[2] in (forward.edit.message or "")
    assert own(world) == states[3]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0, "d@1": 0.5}, "logits")
    callers.check([({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0}, "probabilities"), ({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0, "d@1": 0.5}, "logits")])
    one.rollback(2)
    assert own(world) == states[0]
    world.check(ABC)
    with raises(InputError, "'ensemble' | 0 edits | 1"):
        one.rollback()


def test_back_to_an_edit_is_what_that_left(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"a": 2.0})
    first = own(world)
    one.weight("ensemble", {"a": 3.0})
    one.weight("ensemble", {"a": 4.0})
    number = one.history()[0].id
    one.rollback(to=number)
    assert own(world) == first
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    with raises(InputError, f"{number} | 'ensemble'"):
        one.rollback(to=number)


def test_an_ensemble_that_was_made_or_deleted_comes_and_goes(world: World, one: Ensembles) -> None:
    one.create("canary", ["d", "b"], weights={"b": 3.0})
    made = own(world, "canary")
    gone = one.rollback()
    assert_each(gone.changes, "deletes | canary")
    assert not (world.folder / "canary").exists()
    assert "canary" not in world.loaded()
    one.rollback(to=one.history()[0].id)
    assert own(world, "canary") == made
    world.check({"d@1": 1.0, "b@2": 3.0}, name="canary")
    one.delete("canary")
    assert "d" not in world.loaded()
    one.rollback()
    assert own(world, "canary") == made
    world.check({"d@1": 1.0, "b@2": 3.0}, name="canary")
    world.check(ABC)


def test_the_ensemble_that_was_edited_last_is_meant_and_another_can_be_named(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"a": 2.0})
    one.create("canary", ["d"])
    one.rollback(name="ensemble")
    world.check(ABC)
    one.average("canary", "logits")
    assert one.rollback().ensemble == "canary"
    world.check({"d@1": 1.0}, name="canary")


def test_what_an_export_replaced_since_is_undone_too_and_said(world: World) -> None:
    told: list[str] = []
    with world.client() as client:
        one = Ensembles(world.folder, client, on_warning=told.append)
        one.weight("ensemble", {"a": 2.0})
        first = own(world)
        one.weight("ensemble", {"a": 3.0})
        write_files(world.folder, repository_plan(world.folder, [tiny.member("d", 4)], ensemble="ensemble", replace=True))
        one.reload("ensemble")
        votes = {"a@1": 3.0, "b@1": 1.0, "c@1": 1.0, **({"d@2": 1.0} if (world.folder / "d/2").exists() else {"d@1": 1.0})}
        assert [f"{vote.model}@{vote.version}" for vote in one.declared("ensemble").members] == list(votes)
        assert one.history()[-1].action == "reload"
        one.rollback(2)
        assert own(world) == first
        world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
        assert told == []
        path = world.folder / "ensemble/config.pbtxt"
        path.write_bytes(b"# a comment is no edit\n" + path.read_bytes())
        one.rollback()
        assert told == []
        world.check(ABC)
        one.weight("ensemble", {"a": 5.0})
        last = own(world)
        write_files(world.folder, repository_plan(world.folder, [tiny.member("e", 5)], ensemble="ensemble", replace=True))
        one.rollback()
        assert own(world) == last, "what nothing has recorded is undone first, and alone"
        assert len(told) == 1
        assert_facts(told[0], "'ensemble'")
        world.check({"a@1": 5.0, "b@1": 1.0, "c@1": 1.0})
        write_files(world.folder, repository_plan(world.folder, [tiny.member("f", 6)], ensemble="ensemble", replace=True))
        one.rollback(2)
        world.check(ABC)
        one.weight("ensemble", {"a": 5.0})
        path.write_bytes(b"no parser takes this {\n" + path.read_bytes())
        assert one.rollback(dry_run=True).dry_run
        one.rollback()
    world.check({"a@1": 5.0, "b@1": 1.0, "c@1": 1.0})


def test_a_hand_edit_between_the_look_up_and_the_rollback_is_not_rolled_over(
    world: World, one: Ensembles, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.weight("ensemble", {"a": 2.0})
    path = world.folder / "ensemble/labels.txt"
    run = EditRunner.run

    def edits_by_hand_first(runner: EditRunner, *arguments: Any, **options: Any) -> Applied:
        path.write_bytes(b"one\ntwo\nthree\n")
        return run(runner, *arguments, **options)

    monkeypatch.setattr(EditRunner, "run", edits_by_hand_first)
    history = one.history()
    with raises(InputError, "'ensemble' | meanwhile"):
        one.rollback()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    assert one.history() == history
    monkeypatch.undo()
    one.rollback()
    assert path.read_bytes() != b"one\ntwo\nthree\n"
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})


def test_averages_that_are_gone_are_generated_again(world: World, one: Ensembles) -> None:
    config = world.folder / "ensemble/config.pbtxt"
    first = {step: content(world.folder / step) for step in world.averaging()}
    before = config.read_bytes()
    one.weight("ensemble", {"a": 2.0})
    for model in first:
        shutil.rmtree(world.folder / model)
    one.rollback()
    assert config.read_bytes() == before
    assert {model: content(world.folder / model) for model in first} == first
    world.check(ABC)


def test_a_member_that_is_gone_is_named(world: World, one: Ensembles) -> None:
    one.add("ensemble", ["d"])
    one.remove("ensemble", ["d"])
    shutil.rmtree(world.folder / "d")
    before = content(world.folder)
    with raises(EnsembleError, "d@1 | 'ensemble' | export it again"):
        one.rollback()
    assert content(world.folder) == before


def test_no_way_back_is_told(world: World, one: Ensembles) -> None:
    with pytest.raises(InputError, match="no history"):
        one.rollback()
    one.weight("ensemble", {"a": 2.0})
    before = content(world.folder)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: one.rollback(2), "'ensemble' | 1 edit | 2"),
        (lambda: one.rollback(0), "1 or more | 0"),
        (lambda: one.rollback(to="0123456789ab"), "0123456789ab | 'ensemble' | `defensemble ensemble history`"),
        (lambda: one.rollback(name="canary"), "'canary' | 0 edits | 1"),
    ]
    for act, text in refused:
        with raises(InputError, text):
            act()
    assert content(world.folder) == before


def test_a_damaged_history_stops_edits_before_they_begin(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"a": 2.0})
    path = world.folder / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    before = content(world.folder)
    told = "history.jsonl:1: | damaged"
    with raises(HistoryError, told):
        one.rollback()
    with raises(HistoryError, told):
        one.history()
    assert content(world.folder) == before


def test_a_snapshot_whose_member_was_changed_since_is_refused(world: World, one: Ensembles) -> None:
    one.add("ensemble", ["d"])
    one.remove("ensemble", ["d"])
    path = world.folder / "d/1/model.onnx"
    path.write_bytes(tiny.linear_onnx(99))
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match="rollback 'ensemble'"):
        one.rollback()
    assert content(world.folder) == before


def test_apply_after_a_rollback_is_on_top_of_what_that_left(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"a": 2.0})
    one.weight("ensemble", {"a": 3.0})
    one.rollback()
    one.apply(Ensemble("ensemble", (Member("a"), Member("d"))))
    one.rollback()
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    one.rollback()
    world.check(ABC)
