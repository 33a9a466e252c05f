"""Servers with a folder each: an edit changes all of them or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from defensemble import Client, ConnectionFailedError, InputError
from defensemble.ensembles import EditFailedError, EditRefusedError, Ensembles, Replica
from defensemble_export import planned_files, write_files
from defensemble_export.editing import read_history
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.facts import assert_each, raises
from tests.support.scripted import free_port
from tests.support.tiny import content, leftovers, member
from tests.support.world import ABC, KEY, World, calling, times_of_change, write_world


@pytest.fixture(scope="module")
def served_other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A second server with an equal folder of its own."""
    from defensemble_server import ServeOptions, serve

    folder = write_world(tmp_path_factory.mktemp("other") / "repository")
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, admin_key=KEY)) as server:
        yield World(folder, server, content(folder))
    assert leftovers(folder) == []


@pytest.fixture
def worlds(world: World, served_other: World) -> Iterator[tuple[World, World]]:
    yield world, served_other
    served_other.restore()


@pytest.fixture
def over(worlds: tuple[World, World]) -> Iterator[Ensembles]:
    """An editor of both, over gRPC and over HTTP."""
    one, two = worlds
    with one.client() as first, two.client("http") as second:
        yield Ensembles.over([Replica(one.folder, (first,)), Replica(two.folder, (second,))])


def check(worlds: tuple[World, World], members: dict[str, float], average: str = "probabilities") -> None:
    for world in worlds:
        world.check(members, average)


def test_edits_and_rollbacks_change_all_replicas(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    members = {"a@1": 2.0, "b@2": 1.0, "c@1": 1.0}
    with calling(one.server.grpc_url) as first, calling(two.server.grpc_url) as second:
        applied = over.weight("ensemble", {"a": 2.0}, message="both")
        over.add("ensemble", ["b"], in_place_of="b")
        check(worlds, members)
        over.rollback(2)
        check(worlds, ABC)
    for callers in (first, second):
        callers.check([(ABC, "probabilities"), ({**ABC, "a@1": 2.0}, "probabilities"), (members, "probabilities"), (ABC, "probabilities")])
    assert applied.servers == (one.server.grpc_url, two.server.http_url)
    histories = [[(edit.id, edit.action, edit.message) for edit in read_history(world.folder)] for world in worlds]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 3
    assert content(one.folder / "ensemble") == content(two.folder / "ensemble")


def test_a_failure_at_one_replica_restores_all(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    # Without a digest, only the server detects the damage.
    (two.folder / "d/1/model.onnx").write_bytes(b"no model")
    for world in worlds:
        config = world.folder / "d/config.pbtxt"
        config.write_text(config.read_text().replace("sha256.1", "was.1"))
    before = [content(world.folder) for world in worlds]
    with calling(one.server.grpc_url) as first, calling(two.server.grpc_url) as second:
        with raises(EditFailedError, f"load d on {two.server.http_url}") as caught:
            over.add("ensemble", ["d"])
    for callers in (first, second):
        callers.check([(ABC, "probabilities")])
    assert [content(world.folder) for world in worlds] == before
    places = (one.server.grpc_url, two.server.http_url, *(world.folder for world in worlds))
    assert_each(sorted(caught.value.restore_report), *sorted(f"{place} | old state" for place in places))
    check(worlds, ABC)


def test_an_unreachable_replica_stops_the_edit(worlds: tuple[World, World]) -> None:
    one, two = worlds
    before = [content(world.folder) for world in worlds]
    with one.client() as first, Client(f"grpc://127.0.0.1:{free_port()}", admin_key=KEY, timeout_s=2) as away:
        with pytest.raises(ConnectionFailedError, match=away.url):
            Ensembles.over([Replica(one.folder, (first,)), Replica(two.folder, (away,))]).weight("ensemble", {"a": 2.0})
    assert [content(world.folder) for world in worlds] == before
    check(worlds, ABC)


def test_differing_replicas_are_refused_until_apply(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    with two.client() as client:
        Ensembles(two.folder, client).weight("ensemble", {"c": 7.0})
    before = [(content(world.folder), times_of_change(world.folder)) for world in worlds]
    with raises(EditRefusedError, f"{two.folder} | 'ensemble' | {one.folder}"):
        over.weight("ensemble", {"a": 2.0})
    with raises(InputError, f"{one.folder} | no history"):
        over.rollback()
    assert [(content(world.folder), times_of_change(world.folder)) for world in worlds] == before
    with one.client() as client:
        Ensembles(one.folder, client).weight("ensemble", {"c": 7.0})
    with raises(InputError, f"{two.folder} | 'ensemble'"):
        over.rollback()
    applied = over.apply(Ensemble("ensemble", (Member("a"), Member("b"), Member("c"))))
    assert_each(applied.changes, "weight | c@1 | 7 -> 1 | 77.8 % -> 33.3 %")
    check(worlds, ABC)
    over.weight("ensemble", {"a": 2.0})
    check(worlds, {**ABC, "a@1": 2.0})
    over.rollback()
    check(worlds, ABC)


def test_rollback_restores_each_replica_to_its_own_state(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    with two.client() as client:
        Ensembles(two.folder, client).create("canary", ["d"])
    before = content(two.folder / "canary")
    applied = over.apply(Ensemble("canary", (Member("a"), Member("b", 2, 3.0))))
    assert applied.changes
    for world in worlds:
        world.check({"a@1": 1.0, "b@2": 3.0}, name="canary")
    over.rollback(name="canary")
    assert not (one.folder / "canary").exists()
    assert "canary" not in one.loaded()
    assert content(two.folder / "canary") == before
    two.check({"d@1": 1.0}, name="canary")
    check(worlds, ABC)


def test_refuses_a_member_whose_file_differs_between_replicas(worlds: tuple[World, World], over: Ensembles) -> None:
    two = worlds[1]
    shutil.rmtree(two.folder / "d")
    write_files(two.folder, planned_files(two.folder, [member("d", 99)], ensemble=None, max_batch_size=8))
    before = [content(world.folder) for world in worlds]
    with pytest.raises(EditRefusedError, match="d@1"):
        over.add("ensemble", ["d"])
    assert [content(world.folder) for world in worlds] == before


def test_names_the_replica_that_has_no_such_member(worlds: tuple[World, World], over: Ensembles) -> None:
    shutil.rmtree(worlds[1].folder / "d")
    before = [content(world.folder) for world in worlds]
    with raises(ValueError, f"{worlds[1].folder} | 'd' | a, b, c"):
        over.add("ensemble", ["d"])
    assert [content(world.folder) for world in worlds] == before


def test_show_reports_differences_by_server(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    Ensembles(two.folder).weight("ensemble", {"c": 7.0})
    (state,) = over.show("ensemble")
    assert state.served[one.server.grpc_url] == "yes"
    assert state.served[two.server.http_url].startswith("outdated")


def test_reload_prune_and_create_work_with_replicas(worlds: tuple[World, World], over: Ensembles) -> None:
    for world in worlds:
        average = next(name for name in world.averaging() if name.startswith("average_"))
        path = world.folder / average / "config.pbtxt"
        path.write_text(path.read_text().replace("[1.0, 1.0, 1.0]", "[1.0, 1.0, 9.0]"))
    (applied,) = over.reload()
    assert_each(applied.changes, "weight | c@1 | 1 -> 9 | 33.3 % -> 81.8 %")
    check(worlds, {**ABC, "c@1": 9.0})
    over.create("canary", ["d"])
    over.delete("canary")
    over.remove("ensemble", ["c"])
    pruned = over.prune(keep_edits=0)
    assert sorted(item.model for item in pruned if not item.model.startswith("average_")) == ["c", "c", "d", "d"]
    for world in worlds:
        assert not (world.folder / "c").exists()
    check(worlds, {"a@1": 1.0, "b@1": 1.0})


def test_rejects_the_same_folder_twice(world: World, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world.folder)
    with ExitStack() as stack:
        one, two = (stack.enter_context(world.client(kind)) for kind in ("grpc", "http"))
        with raises(InputError, f"{world.folder} | twice"):
            Ensembles.over([Replica(world.folder, (one,)), Replica(tmp_path / "link", (two,))])
