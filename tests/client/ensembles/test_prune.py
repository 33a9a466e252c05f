"""What nobody uses is listed, deleted and unloaded; what a way back needs stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from defensemble import InputError
from defensemble.ensembles import Ensembles
from defensemble_export import EnsembleError, HistoryError
from tests.support.facts import raises
from tests.support.tiny import content
from tests.support.world import ABC, World, calling, recorded, times_of_change


@pytest.fixture
def one(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def names(found: object) -> list[str]:
    """As a person would write them, averaging models left out."""
    assert isinstance(found, list)
    told = [one.model if one.version is None else f"{one.model}@{one.version}" for one in found]
    return [name for name in told if not name.startswith("average_")]


def test_nothing_that_a_way_back_needs_is_pruned_and_then_the_way_back_works(world: World, one: Ensembles) -> None:
    one.remove("ensemble", ["c"])
    one.add("ensemble", ["b@2"], in_place_of="b@1")
    one.weight("ensemble", {"a": 2.0})
    one.weight("ensemble", {"a": 3.0})
    before = content(world.folder)
    assert names(one.prune(keep=4)) == []
    assert content(world.folder).keys() == before.keys(), "each state is one that a rollback goes to"
    listed = one.prune(keep=2, dry_run=True)
    assert content(world.folder).keys() == before.keys()
    assert sorted(names(listed)) == ["b@1", "c"]
    assert all(found.why and found.bytes > 0 for found in listed)
    with calling(world.server.grpc_url) as callers:
        assert one.prune(keep=2) == listed
    callers.check([({"a@1": 3.0, "b@2": 1.0}, "probabilities")])
    assert not (world.folder / "c").exists()
    assert not (world.folder / "b/1").exists()
    assert (world.folder / "d").exists(), "a network that never voted is nobody's to delete"
    assert world.loaded()["b"] == [2]
    assert "c" not in world.loaded()
    assert one.check() == []
    world.check({"a@1": 3.0, "b@2": 1.0})
    one.rollback(2)
    world.check({"a@1": 1.0, "b@2": 1.0})
    with raises(EnsembleError, "b@1 | 'ensemble'"):
        one.rollback()
    world.check({"a@1": 1.0, "b@2": 1.0})


def test_averages_that_no_way_back_needs_go_and_what_is_used_is_not_touched(world: World, one: Ensembles) -> None:
    for weight in (2.0, 3.0, 4.0):
        one.weight("ensemble", {"a": weight})
    folders = {entry.name for entry in world.folder.iterdir() if entry.name.startswith("average_")}
    assert len(folders) == 4
    times = times_of_change(world.folder)
    with recorded(world) as (client, calls):
        found = Ensembles(world.folder, client).prune(keep=0)
    assert len(found) == 3
    assert calls == [], "they had been unloaded with the edits"
    after = times_of_change(world.folder)
    assert after == {name: time for name, time in times.items() if name in after}
    world.check({"a@1": 4.0, "b@1": 1.0, "c@1": 1.0})
    one.rollback(3)
    world.check(ABC)


def test_what_a_server_runs_stays_whatever_lies_on_disk(world: World, one: Ensembles) -> None:
    files = Ensembles(world.folder)
    files.remove("ensemble", ["c"])
    assert one.prune(keep=0) == [], "the server still serves the ensemble with c"
    one.reload("ensemble")
    assert names(one.prune(keep=0)) == ["c"]
    world.check({"a@1": 1.0, "b@1": 1.0})


def test_one_that_another_ensemble_uses_stays(world: World, one: Ensembles) -> None:
    one.create("canary", ["c"])
    one.remove("ensemble", ["c"])
    assert names(one.prune(keep=0)) == []
    one.delete("canary")
    assert names(one.prune(keep=1)) == [], "to undo the deletion needs it"
    assert names(one.prune(keep=0)) == ["c"]
    world.check({"a@1": 1.0, "b@1": 1.0})


def test_it_refuses_where_it_cannot_know(world: World, one: Ensembles) -> None:
    with raises(InputError, "keep | 0 or more | -1"):
        one.prune(keep=-1)
    one.weight("ensemble", {"a": 2.0})
    path = world.folder / "history.jsonl"
    path.write_bytes(b"{" + path.read_bytes())
    before = content(world.folder)
    with pytest.raises(HistoryError, match=r"history\.jsonl:1:"):
        one.prune(keep=0)
    assert content(world.folder) == before
