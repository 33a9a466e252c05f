"""Pruning deletes and unloads unused models, and keeps those that a rollback needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from defensemble import InputError
from defensemble.ensembles import Ensembles
from defensemble_export import EnsembleError, HistoryError
from tests.support.facts import raises
from tests.support.tiny import content
from tests.support.world import ABC, World, calling, recording_client, times_of_change


@pytest.fixture
def editor(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def names(pruned: object) -> list[str]:
    """Return the names, without averaging models."""
    assert isinstance(pruned, list)
    texts = [item.model if item.version is None else f"{item.model}@{item.version}" for item in pruned]
    return [name for name in texts if not name.startswith("average_")]


def test_prune_keeps_what_rollbacks_need(world: World, editor: Ensembles) -> None:
    editor.remove("ensemble", ["c"])
    editor.add("ensemble", ["b@2"], in_place_of="b@1")
    editor.weight("ensemble", {"a": 2.0})
    editor.weight("ensemble", {"a": 3.0})
    before = content(world.folder)
    assert names(editor.prune(keep_edits=4)) == []
    assert content(world.folder).keys() == before.keys(), "a rollback can restore each state"
    listed = editor.prune(keep_edits=2, dry_run=True)
    assert content(world.folder).keys() == before.keys()
    assert sorted(names(listed)) == ["b@1", "c"]
    assert all(item.reason and item.bytes > 0 for item in listed)
    with calling(world.server.grpc_url) as callers:
        assert editor.prune(keep_edits=2) == listed
    callers.check([({"a@1": 3.0, "b@2": 1.0}, "probabilities")])
    assert not (world.folder / "c").exists()
    assert not (world.folder / "b/1").exists()
    assert (world.folder / "d").exists(), "a network that was never a member is kept"
    assert world.loaded()["b"] == [2]
    assert "c" not in world.loaded()
    assert editor.check() == []
    world.check({"a@1": 3.0, "b@2": 1.0})
    editor.rollback(2)
    world.check({"a@1": 1.0, "b@2": 1.0})
    with raises(EnsembleError, "b@1 | 'ensemble'"):
        editor.rollback()
    world.check({"a@1": 1.0, "b@2": 1.0})


def test_prune_deletes_unused_averaging_models(world: World, editor: Ensembles) -> None:
    for weight in (2.0, 3.0, 4.0):
        editor.weight("ensemble", {"a": weight})
    folders = {entry.name for entry in world.folder.iterdir() if entry.name.startswith("average_")}
    assert len(folders) == 4
    times = times_of_change(world.folder)
    with recording_client(world) as (client, calls):
        pruned = Ensembles(world.folder, client).prune(keep_edits=0)
    assert len(pruned) == 3
    assert calls == [], "the edits unloaded them"
    after = times_of_change(world.folder)
    assert after == {name: time for name, time in times.items() if name in after}
    world.check({"a@1": 4.0, "b@1": 1.0, "c@1": 1.0})
    editor.rollback(3)
    world.check(ABC)


def test_prune_keeps_what_a_server_runs(world: World, editor: Ensembles) -> None:
    files = Ensembles(world.folder)
    files.remove("ensemble", ["c"])
    assert editor.prune(keep_edits=0) == [], "the server still serves the ensemble with c"
    editor.reload("ensemble")
    assert names(editor.prune(keep_edits=0)) == ["c"]
    world.check({"a@1": 1.0, "b@1": 1.0})


def test_prune_keeps_members_of_other_ensembles(world: World, editor: Ensembles) -> None:
    editor.create("canary", ["c"])
    editor.remove("ensemble", ["c"])
    assert names(editor.prune(keep_edits=0)) == []
    editor.delete("canary")
    assert names(editor.prune(keep_edits=1)) == [], "undoing the deletion needs it"
    assert names(editor.prune(keep_edits=0)) == ["c"]
    world.check({"a@1": 1.0, "b@1": 1.0})


def test_prune_refuses_unknown_states(world: World, editor: Ensembles) -> None:
    with raises(InputError, "keep_edits | 0 or more | -1"):
        editor.prune(keep_edits=-1)
    editor.weight("ensemble", {"a": 2.0})
    path = world.folder / "history.jsonl"
    path.write_bytes(b"{" + path.read_bytes())
    before = content(world.folder)
    with pytest.raises(HistoryError, match=r"history\.jsonl:1:"):
        editor.prune(keep_edits=0)
    assert content(world.folder) == before
