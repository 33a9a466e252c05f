"""Servers with a folder each: all are edited, or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from defensemble import Client, ConnectionFailedError, InputError
from defensemble.ensembles import EditFailedError, EditRefusedError, Ensembles, Replica
from defensemble_export import repository_plan, write_files
from defensemble_export.editing import read_history
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.facts import assert_each, raises
from tests.support.scripted import free_port
from tests.support.tiny import content, leftovers, member
from tests.support.world import ABC, KEY, World, calling, times_of_change, write_world


@pytest.fixture(scope="module")
def served_other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A second server, with a folder of its own that holds the same."""
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
    """An editor of both, one over gRPC and the other over HTTP."""
    one, two = worlds
    with one.client() as first, two.client("http") as second:
        yield Ensembles.over([Replica(one.folder, (first,)), Replica(two.folder, (second,))])


def check(worlds: tuple[World, World], votes: dict[str, float], average: str = "probabilities") -> None:
    for world in worlds:
        world.check(votes, average)


def test_an_edit_and_its_rollback_are_made_at_all(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    votes = {"a@1": 2.0, "b@2": 1.0, "c@1": 1.0}
    with calling(one.server.grpc_url) as first, calling(two.server.grpc_url) as second:
        done = over.weight("ensemble", {"a": 2.0}, message="both")
        over.add("ensemble", ["b"], in_place_of="b")
        check(worlds, votes)
        over.rollback(2)
        check(worlds, ABC)
    for callers in (first, second):
        callers.check([(ABC, "probabilities"), ({**ABC, "a@1": 2.0}, "probabilities"), (votes, "probabilities"), (ABC, "probabilities")])
    assert done.servers == (one.server.grpc_url, two.server.http_url)
    histories = [[(edit.id, edit.action, edit.message) for edit in read_history(world.folder)] for world in worlds]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 3
    assert content(one.folder / "ensemble") == content(two.folder / "ensemble")


def test_where_one_fails_all_are_put_back(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    # A file that no digest describes is not ours to judge: the server does.
    (two.folder / "d/1/model.onnx").write_bytes(b"no model")
    for world in worlds:
        config = world.folder / "d/config.pbtxt"
        config.write_text(config.read_text().replace("sha256.1", "was.1"))
    before = [content(world.folder) for world in worlds]
    with calling(one.server.grpc_url) as first, calling(two.server.grpc_url) as second:
        with raises(EditFailedError, f"load d on {two.server.http_url}") as failed:
            over.add("ensemble", ["d"])
    for callers in (first, second):
        callers.check([(ABC, "probabilities")])
    assert [content(world.folder) for world in worlds] == before
    places = (one.server.grpc_url, two.server.http_url, *(world.folder for world in worlds))
    assert_each(sorted(failed.value.put_back), *sorted(f"{place} | old state" for place in places))
    check(worlds, ABC)


def test_where_one_is_not_there_none_is_changed(worlds: tuple[World, World]) -> None:
    one, two = worlds
    before = [content(world.folder) for world in worlds]
    with one.client() as first, Client(f"grpc://127.0.0.1:{free_port()}", admin_key=KEY, timeout_s=2) as away:
        with pytest.raises(ConnectionFailedError, match=away.url):
            Ensembles.over([Replica(one.folder, (first,)), Replica(two.folder, (away,))]).weight("ensemble", {"a": 2.0})
    assert [content(world.folder) for world in worlds] == before
    check(worlds, ABC)


def test_replicas_that_differ_are_refused_until_apply_makes_them_equal(worlds: tuple[World, World], over: Ensembles) -> None:
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
    done = over.apply(Ensemble("ensemble", (Member("a"), Member("b"), Member("c"))))
    assert_each(done.changes, "weight | c@1 | 7 -> 1 | 77.8 % -> 33.3 %")
    check(worlds, ABC)
    over.weight("ensemble", {"a": 2.0})
    check(worlds, {**ABC, "a@1": 2.0})
    over.rollback()
    check(worlds, ABC)


def test_an_ensemble_that_only_one_had_comes_and_goes_with_each(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    with two.client() as client:
        Ensembles(two.folder, client).create("canary", ["d"])
    before = content(two.folder / "canary")
    done = over.apply(Ensemble("canary", (Member("a"), Member("b", 2, 3.0))))
    assert done.changes
    for world in worlds:
        world.check({"a@1": 1.0, "b@2": 3.0}, name="canary")
    over.rollback(name="canary")
    assert not (one.folder / "canary").exists()
    assert "canary" not in one.loaded()
    assert content(two.folder / "canary") == before
    two.check({"d@1": 1.0}, name="canary")
    check(worlds, ABC)


def test_another_network_under_the_same_name_is_refused(worlds: tuple[World, World], over: Ensembles) -> None:
    two = worlds[1]
    shutil.rmtree(two.folder / "d")
    write_files(two.folder, repository_plan(two.folder, [member("d", 99)], ensemble=None, max_batch_size=8))
    before = [content(world.folder) for world in worlds]
    with pytest.raises(EditRefusedError, match="d@1"):
        over.add("ensemble", ["d"])
    assert [content(world.folder) for world in worlds] == before


def test_a_member_that_one_lacks_is_named_with_its_folder(worlds: tuple[World, World], over: Ensembles) -> None:
    shutil.rmtree(worlds[1].folder / "d")
    before = [content(world.folder) for world in worlds]
    with raises(ValueError, f"{worlds[1].folder} | 'd' | a, b, c"):
        over.add("ensemble", ["d"])
    assert [content(world.folder) for world in worlds] == before


def test_what_differs_is_shown_by_server(worlds: tuple[World, World], over: Ensembles) -> None:
    one, two = worlds
    Ensembles(two.folder).weight("ensemble", {"c": 7.0})
    (state,) = over.show("ensemble")
    assert state.served[one.server.grpc_url] == "yes"
    assert state.served[two.server.http_url].startswith("an older one")


def test_hand_edits_prune_and_create_work_over_several(worlds: tuple[World, World], over: Ensembles) -> None:
    for world in worlds:
        average = next(name for name in world.averaging() if name.startswith("average_"))
        path = world.folder / average / "config.pbtxt"
        path.write_text(path.read_text().replace("[1.0, 1.0, 1.0]", "[1.0, 1.0, 9.0]"))
    (done,) = over.reload()
    assert_each(done.changes, "weight | c@1 | 1 -> 9 | 33.3 % -> 81.8 %")
    check(worlds, {**ABC, "c@1": 9.0})
    over.create("canary", ["d"])
    over.delete("canary")
    over.remove("ensemble", ["c"])
    found = over.prune(keep=0)
    assert sorted(one.model for one in found if not one.model.startswith("average_")) == ["c", "c", "d", "d"]
    for world in worlds:
        assert not (world.folder / "c").exists()
    check(worlds, {"a@1": 1.0, "b@1": 1.0})


def test_a_folder_twice_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world.folder)
    with ExitStack() as stack:
        one, two = (stack.enter_context(world.client(kind)) for kind in ("grpc", "http"))
        with raises(InputError, f"{world.folder} | twice"):
            Ensembles.over([Replica(world.folder, (one,)), Replica(tmp_path / "link", (two,))])
