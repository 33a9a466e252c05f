"""The servers of an edit: several of one folder, unreachable, without the key, of another folder, or none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from defensemble import Client, ConnectionFailedError, ForbiddenError, InputError
from defensemble.ensembles import EditFailedError, Ensembles
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.facts import raises
from tests.support.scripted import free_port
from tests.support.tiny import content, leftovers
from tests.support.world import ABC, KEY, World, calling, recording_client, times_of_change, write_world


def serving(folder: Path, **options: Any) -> Iterator[World]:
    from defensemble_server import ServeOptions, serve

    before = content(folder)
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, admin_key=KEY, **options)) as server:
        yield World(folder, server, before)


@pytest.fixture(scope="module")
def second(served_world: World) -> Iterator[World]:
    """Another server of the same folder."""
    yield from serving(served_world.folder)


@pytest.fixture
def both(world: World, second: World) -> Iterator[tuple[World, World]]:
    yield world, second
    second.before = world.before
    world.restore()
    second.restore()


@pytest.fixture(params=["grpc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


EDITS: dict[str, Callable[[Ensembles], object]] = {
    "add": lambda ensembles: ensembles.add("ensemble", ["d"]),
    "remove": lambda ensembles: ensembles.remove("ensemble", ["a"]),
    "create": lambda ensembles: ensembles.create("canary", ["a"]),
    "delete": lambda ensembles: ensembles.delete("ensemble"),
    "weight": lambda ensembles: ensembles.weight("ensemble", {"a": 2}),
    "apply": lambda ensembles: ensembles.apply(Ensemble("ensemble", (Member("d"),))),
    "reload": lambda ensembles: ensembles.reload("ensemble"),
    "rollback": lambda ensembles: ensembles.rollback(),
    "prune": lambda ensembles: ensembles.prune(keep_edits=0),
}


@pytest.mark.parametrize("key", [None, "another-key-0123456789"], ids=["no key", "wrong key"])
def test_without_the_admin_key_nothing_is_written(world: World, kind: str, key: str | None) -> None:
    with world.client() as client:
        Ensembles(world.folder, client).weight("ensemble", {"c": 3.0})
    before, times = content(world.folder), times_of_change(world.folder)
    with world.client(kind, admin_key=key) as client:
        for action, act in EDITS.items():
            with pytest.raises(ForbiddenError, match="--admin-key-file") as caught:
                act(Ensembles(world.folder, client))
            assert "another-key" not in str(caught.value), action
            assert (content(world.folder), times_of_change(world.folder)) == (before, times), action
    world.check({"a@1": 1.0, "b@1": 1.0, "c@1": 3.0})


def test_an_unreachable_server_stops_the_edit_before_anything_is_written(world: World, kind: str) -> None:
    before = content(world.folder)
    with Client(f"{kind}://127.0.0.1:{free_port()}", admin_key=KEY, timeout_s=2) as away, world.client() as client:
        for clients in (away, [client, away], [away, client]):
            with pytest.raises(ConnectionFailedError, match=away.url):
                Ensembles(world.folder, clients).weight("ensemble", {"a": 2.0})
            assert content(world.folder) == before
    world.check(ABC)


def test_servers_that_share_a_folder_are_all_updated(both: tuple[World, World]) -> None:
    one, two = both
    with one.client() as first, two.client("http") as other, calling(one.server.grpc_url) as a, calling(two.server.http_url) as b:
        ensembles = Ensembles(one.folder, [first, other])
        applied = ensembles.add("ensemble", ["b@2"], in_place_of="b")
        members = {"a@1": 1.0, "b@2": 1.0, "c@1": 1.0}
        for world in both:
            world.check(members)
        assert applied.servers == (one.server.grpc_url, two.server.http_url)
        ensembles.rollback()
        for world in both:
            world.check(ABC)
    for callers in (a, b):
        callers.check([(ABC, "probabilities"), (members, "probabilities"), (ABC, "probabilities")])


def test_apply_updates_the_outdated_server_of_two(both: tuple[World, World]) -> None:
    one, two = both
    members = {"a@1": 2.0, "b@1": 1.0, "c@1": 1.0, "d@1": 1.0}
    with one.client() as first, two.client() as other:
        Ensembles(one.folder, first).apply(Ensemble("ensemble", (Member("a", 1, 2.0), Member("b"), Member("c"), Member("d"))))
        (state,) = Ensembles(one.folder, [first, other]).show("ensemble")
        assert state.served[first.url] == "yes"
        assert state.served[other.url].startswith("outdated")
        applied = Ensembles(one.folder, [first, other]).apply(Ensembles(one.folder).declared("ensemble"))
        assert applied.edit is None
        for world in both:
            world.check(members)


def test_rejects_missing_and_duplicate_folders_and_servers(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with world.client() as client:
        with raises(InputError, f"{client.url} | twice"):
            Ensembles(world.folder, [client, client])
    for what, text in (("none", "none | not exist"), ("file", "is a file")):
        with raises(InputError, text):
            Ensembles(tmp_path / what)
    with pytest.raises(InputError, match="no repository"):
        Ensembles.over([])


def test_an_edit_loads_an_unloaded_ensemble(world: World) -> None:
    with world.client() as client:
        for model in world.loaded():
            client.transport.unload_model(model, 20)
        assert world.loaded() == {}
        applied = Ensembles(world.folder, client).weight("ensemble", {"a": 2.0})
    assert set(applied.loaded[world.server.grpc_url]) >= {"a", "b", "c"}
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})


def test_edits_without_servers_change_only_files(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "place" / "repository")
    ensembles = Ensembles(folder)
    ensembles.add("ensemble", ["d"], weight=2.0)
    ensembles.average("ensemble", "logits")
    ensembles.create("canary", ["b"])
    applied = ensembles.rollback(name="canary")
    assert applied.servers == ()
    assert applied.loaded == {}
    ensembles.rollback(to=next(edit.id for edit in ensembles.history() if edit.ensemble == "canary"))
    assert ensembles.check() == []
    for world in serving(folder):
        world.check({**ABC, "d@1": 2.0}, "logits")
        world.check({"b@2": 1.0}, name="canary")
        with world.client() as client:
            Ensembles(folder, client).rollback(name="ensemble")
        world.check({**ABC, "d@1": 2.0})
    assert leftovers(folder) == []


def test_reports_a_server_of_another_folder(world: World, tmp_path: Path, kind: str) -> None:
    other = write_world(tmp_path / "place" / "repository")
    before, loaded = content(other), world.loaded()
    with world.client(kind) as client, calling(world.server.grpc_url) as callers:
        for act in (EDITS["weight"], EDITS["create"]):
            with raises(EditFailedError, f"{other} | another folder"):
                act(Ensembles(other, client))
            assert content(other) == before
    callers.check([(ABC, "probabilities")])
    assert world.loaded() == loaded
    world.check(ABC)


def test_reports_a_server_of_another_folder_on_deletion(world: World, tmp_path: Path, kind: str) -> None:
    other = write_world(tmp_path / "place" / "repository")
    before = content(other)
    with world.client(kind) as client, raises(EditFailedError, f"{other} | another folder"):
        Ensembles(other, client).delete("ensemble")
    assert content(other) == before
    world.check(ABC)


def test_reports_a_server_without_explicit_model_control(tmp_path: Path, kind: str) -> None:
    from defensemble_server.command import triton_command
    from defensemble_server.process import launch

    folder = write_world(tmp_path / "place" / "repository")

    def command(*arguments: Any, **named: Any) -> list[str]:
        lines = [line for line in triton_command(*arguments, **named) if not line.startswith("--load-model=")]
        return [line.replace("--model-control-mode=explicit", "--model-control-mode=none") for line in lines]

    before = content(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "triton_command", command)
        for world in serving(folder):
            with world.client(kind) as client, pytest.raises(EditFailedError, match="--model-control-mode=explicit") as caught:
                Ensembles(folder, client).weight("ensemble", {"a": 2.0})
            assert "load average_" in str(caught.value)
            assert content(folder) == before
            world.check(ABC)


def test_an_unwritable_folder_stops_the_edit_before_any_load(world: World) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    mode = stat.S_IMODE(world.folder.stat().st_mode)
    world.folder.chmod(0o500)
    try:
        with recording_client(world) as (client, calls), pytest.raises(PermissionError):
            Ensembles(world.folder, client).weight("ensemble", {"a": 2.0})
        assert calls == []
    finally:
        world.folder.chmod(mode)
    world.check(ABC)


def test_a_server_with_a_profile_serves_what_is_on_disk(tmp_path: Path) -> None:
    from defensemble_export import write_profile

    folder = write_world(tmp_path / "place" / "repository")
    write_profile(folder, "cpu")
    for world in serving(folder, profile="cpu"):
        world.check(ABC)
        with world.client() as client:
            ensembles = Ensembles(folder, client)
            assert ensembles.apply(ensembles.declared("ensemble")).loaded == {}
            ensembles.weight("ensemble", {"a": 2.0})
            ensembles.add("ensemble", ["b"], in_place_of="b")
        world.check({"a@1": 2.0, "b@2": 1.0, "c@1": 1.0})
        assert Ensembles(folder).check() == []
