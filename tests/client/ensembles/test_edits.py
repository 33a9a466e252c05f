"""Every edit on a real server, compared with numpy, while clients send requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from defensemble import InputError
from defensemble.ensembles import Applied, EditRefusedError, Ensembles
from defensemble_export import EnsembleError, ExistsError, ExportError
from defensemble_export.editing import yaml_from_ensemble
from defensemble_export.editing.declaration import ensemble_from_yaml
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import ConfigError
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.tiny import CLASSES, content, images, write_second_version
from tests.support.world import ABC, SEEDS, World, calling, recording_client, times_of_change

Act = Callable[[Ensembles], Applied]


def test_clients_do_not_notice_edits(world: World, ensembles: Ensembles) -> None:
    states: list[tuple[dict[str, float], str]] = [(ABC, "probabilities")]

    def follows(members: dict[str, float], average: str = "probabilities") -> None:
        world.check(members, average)
        states.append((members, average))

    with calling(world.server.grpc_url) as callers:
        ensembles.weight("ensemble", {"a": 2.0, "c": 0.5})
        follows({"a@1": 2.0, "b@1": 1.0, "c@1": 0.5})
        ensembles.add("ensemble", ["d"], weight=3.0)
        follows({"a@1": 2.0, "b@1": 1.0, "c@1": 0.5, "d@1": 3.0})
        ensembles.add("ensemble", ["b"], in_place_of="b")
        follows({"a@1": 2.0, "b@2": 1.0, "c@1": 0.5, "d@1": 3.0})
        ensembles.average("ensemble", "logits")
        follows({"a@1": 2.0, "b@2": 1.0, "c@1": 0.5, "d@1": 3.0}, "logits")
        ensembles.remove("ensemble", ["a", "c@1"])
        follows({"b@2": 1.0, "d@1": 3.0}, "logits")
        ensembles.rollback()
        follows({"a@1": 2.0, "b@2": 1.0, "c@1": 0.5, "d@1": 3.0}, "logits")
        ensembles.apply(Ensemble("ensemble", (Member("d", 1, 1.5),)))
        follows({"d@1": 1.5})
        ensembles.rollback(2)
        follows({"a@1": 2.0, "b@2": 1.0, "c@1": 0.5, "d@1": 3.0})
    callers.check(states)
    assert len(world.averaging()) == 1, "unused averaging models are unloaded"


def test_create_adds_a_second_ensemble(world: World, ensembles: Ensembles) -> None:
    before = times_of_change(world.folder)
    applied = ensembles.create("canary", ["b", "a@1"], weights={"b": 2.0}, average="logits", message="newest b")
    world.check({"b@2": 2.0, "a@1": 1.0}, "logits", "canary")
    world.check(ABC)
    assert_each(applied.changes, "creates | canary | logits", "adds | b@2 | 2 | 66.7 %", "adds | a@1 | 1 | 33.3 %")
    assert (world.folder / "canary/labels.txt").read_bytes() == (world.folder / "a/labels.txt").read_bytes()
    with world.client(admin_key=None) as client:
        assert set(client.predict(images(4), model="canary").labels) <= set(CLASSES)
    after = times_of_change(world.folder)
    assert {name: after[name] for name in before} == before, "existing files are not touched"
    assert ensembles.names() == ["canary", "ensemble"]


@pytest.fixture
def editor(world: World) -> Iterator[Ensembles]:
    """An editor over gRPC, for tests in which the protocol does not matter."""
    with world.client() as client:
        yield Ensembles(world.folder, client)


def test_add_uses_the_newest_version_and_allows_two_versions(world: World, editor: Ensembles) -> None:
    editor.remove("ensemble", ["b"])
    applied = editor.add("ensemble", ["b"])
    assert_each(applied.changes, "adds | b@2 | 1 | 33.3 %")
    world.check({"a@1": 1.0, "c@1": 1.0, "b@2": 1.0})
    with raises(EnsembleError, "'b' | 'ensemble' | version 2 | --in-place-of b@2"):
        editor.add("ensemble", ["b"])
    editor.add("ensemble", ["b@1"], weight=0.25)
    world.check({"a@1": 1.0, "c@1": 1.0, "b@2": 1.0, "b@1": 0.25})
    with raises(EnsembleError, "'b' | 'ensemble' | b@2, b@1"):
        editor.remove("ensemble", ["b"])
    editor.remove("ensemble", ["b@2"])
    world.check({"a@1": 1.0, "c@1": 1.0, "b@1": 0.25})


def test_a_replacing_member_keeps_position_and_weight(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"b": 2.0})
    applied = editor.add("ensemble", ["b@2"], in_place_of="b@1", message="trained longer")
    assert_each(applied.changes, "b | version | 1 -> 2")
    world.check({"a@1": 1.0, "b@2": 2.0, "c@1": 1.0})
    assert world.loaded()["b"] == [1, 2]
    editor.add("ensemble", ["d"], in_place_of="a", weight=0.5)
    world.check({"d@1": 0.5, "b@2": 2.0, "c@1": 1.0})
    assert "a" not in world.loaded(), "no ensemble needs it"


def test_a_new_version_replaces_the_old_one_under_load(world: World, ensembles: Ensembles) -> None:
    members = {"a@2": 1.0, "b@1": 1.0, "c@1": 1.0}
    ensembles.create("canary", ["a", "d"])
    with calling(world.server.grpc_url) as callers, calling(world.server.http_url, "canary", count=1) as others:
        write_second_version(world.folder, "a", SEEDS["a@2"])
        applied = ensembles.add("ensemble", ["a"], in_place_of="a")
        assert [models[0] for models in applied.loaded.values()] == ["a"]
        world.check(members)
        ensembles.rollback()
        world.check(ABC)
    callers.check([(ABC, "probabilities"), (members, "probabilities"), (ABC, "probabilities")])
    others.check([({"a@1": 1.0, "d@1": 1.0}, "probabilities")])
    world.check({"a@1": 1.0, "d@1": 1.0}, name="canary")


def test_deletion_keeps_members_that_another_ensemble_uses(world: World, editor: Ensembles) -> None:
    editor.create("canary", ["a", "d"])
    applied = editor.remove("ensemble", ["a"])
    assert "a" in world.loaded()
    assert set(applied.unloaded) == {world.server.grpc_url}
    world.check({"a@1": 1.0, "d@1": 1.0}, name="canary")
    applied = editor.delete("canary", message="it lost")
    assert_each(applied.changes, "deletes | canary")
    assert not (world.folder / "canary").exists()
    assert {"a", "d"} & set(world.loaded()) == set()
    assert (world.folder / "a/1/model.onnx").exists()
    assert len(world.averaging()) == 1
    world.check({"b@1": 1.0, "c@1": 1.0})
    with raises(EnsembleError, "'ensemble' | at least one | delete ensemble`"):
        editor.remove("ensemble", ["b", "c"])


def test_an_unreadable_configuration_only_stops_edits_that_need_it(world: World, editor: Ensembles) -> None:
    editor.create("canary", ["d"])
    with (world.folder / "c/config.pbtxt").open("a") as file:
        file.write("nonsense: 3\n")
    with raises(ConfigError, 'c/config.pbtxt | "nonsense"'):
        editor.weight("ensemble", {"a": 2.0})
    editor.delete("canary")
    assert "canary" not in world.loaded()
    assert editor.history()[-1].action == "delete"


def test_a_member_with_its_own_requests_stays_loaded(world: World) -> None:
    with world.client() as client, calling(world.server.http_url, "a", count=1) as callers:
        applied = Ensembles(world.folder, client, idle_timeout_s=0.3).remove("ensemble", ["a"])
    ((model, why),) = applied.left_loaded.items()
    assert model == f"a on {world.server.grpc_url}"
    assert_facts(why, "0.3 s")
    assert callers.errors == []
    assert "a" in world.loaded()
    world.check({"b@1": 1.0, "c@1": 1.0})


def test_apply_creates_the_declared_state_once(world: World, editor: Ensembles) -> None:
    yaml_text = "name: ensemble\naverage: logits\nmembers:\n  - model: d\n    weight: 2\n  - model: b\n    version: 2\n  - model: a\n"
    applied = editor.apply(ensemble_from_yaml(yaml_text, "file"))
    members = {"d@1": 2.0, "b@2": 1.0, "a@1": 1.0}
    world.check(members, "logits")
    assert applied.edit is not None
    assert applied.edit.action == "apply"
    times, loaded = times_of_change(world.folder), world.loaded()
    for wanted in (ensemble_from_yaml(yaml_text, "file"), ensemble_from_yaml(yaml_from_ensemble(editor.declared("ensemble")), "file")):
        with recording_client(world) as (client, calls):
            again = Ensembles(world.folder, client).apply(wanted)
        assert (again.edit, again.changes, dict(again.loaded), calls) == (None, (), {}, [])
    assert (times_of_change(world.folder), world.loaded()) == (times, loaded)
    assert len(editor.history()) == 1
    created = editor.apply(Ensemble("second", (Member("a"), Member("d"))))
    assert created.edit is not None
    assert created.edit.action == "create"
    world.check({"a@1": 1.0, "d@1": 1.0}, name="second")


def test_weights_are_relative(world: World, editor: Ensembles) -> None:
    before = content(world.folder)
    applied = editor.weight("ensemble", {"a": 5.0, "b": 5.0, "c": 5.0})
    assert (applied.edit, applied.changes) == (None, ()), "5, 5 and 5 equal 1, 1 and 1"
    assert content(world.folder) == before
    world.check(ABC)


def test_apply_updates_an_outdated_server(world: World, editor: Ensembles) -> None:
    Ensembles(world.folder).weight("ensemble", {"a": 4.0})  # only the files
    (state,) = editor.show("ensemble")
    assert state.served[world.server.grpc_url].startswith("outdated")
    applied = editor.apply(editor.declared("ensemble"))
    assert applied.edit is None, "the files had the state already"
    world.check({"a@1": 4.0, "b@1": 1.0, "c@1": 1.0})
    with world.client() as client:
        client.transport.unload_model("ensemble", 20)
        client.transport.unload_model("a", 20)
    assert editor.apply(editor.declared("ensemble")).loaded == {world.server.grpc_url: ("a",)}
    world.check({"a@1": 4.0, "b@1": 1.0, "c@1": 1.0})


EDITS: dict[str, Act] = {
    "create": lambda ensembles: ensembles.create("canary", ["a", "d"], dry_run=True),
    "add": lambda ensembles: ensembles.add("ensemble", ["d"], dry_run=True),
    "remove": lambda ensembles: ensembles.remove("ensemble", ["a"], dry_run=True),
    "delete": lambda ensembles: ensembles.delete("ensemble", dry_run=True),
    "weight": lambda ensembles: ensembles.weight("ensemble", {"a": 2}, dry_run=True),
    "average": lambda ensembles: ensembles.average("ensemble", "logits", dry_run=True),
    "apply": lambda ensembles: ensembles.apply(Ensemble("ensemble", (Member("d"),)), dry_run=True),
    "rollback": lambda ensembles: ensembles.rollback(dry_run=True),
}


def test_a_dry_run_reports_changes_and_writes_nothing(world: World, editor: Ensembles) -> None:
    editor.weight("ensemble", {"c": 3.0})
    before, times = content(world.folder), times_of_change(world.folder)
    for action, edit in EDITS.items():
        with recording_client(world) as (client, calls):
            applied = edit(Ensembles(world.folder, client))
        assert (applied.dry_run, applied.edit, calls) == (True, None, []), action
        assert applied.changes, action
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    world.check({"a@1": 1.0, "b@1": 1.0, "c@1": 3.0})


REFUSED: dict[str, tuple[type[Exception], str, Act]] = {
    "no such member": (
        EnsembleError,
        "'x' | a, b, c, d",
        lambda editor: editor.add("ensemble", ["x"]),
    ),
    "no such version": (EnsembleError, "'a' | version 7 | 1", lambda editor: editor.add("ensemble", ["a@7"])),
    "no version": (EnsembleError, "MODEL@VERSION | 'a@0'", lambda editor: editor.add("ensemble", ["a@0"])),
    "already a member": (EnsembleError, "a@1 | twice", lambda editor: editor.add("ensemble", ["a@1"])),
    "not a member": (EnsembleError, "'d' | 'ensemble' | a@1, b@1, c@1", lambda editor: editor.remove("ensemble", ["d"])),
    "no such ensemble": (
        EnsembleError,
        "'x' | ensemble",
        lambda editor: editor.weight("x", {"a": 1.0}),
    ),
    "a member as an ensemble": (
        EnsembleError,
        "'a' | repository | not an ensemble | ensemble",
        lambda editor: editor.weight("a", {"a": 1.0}),
    ),
    "to delete a member": (EnsembleError, "'a' | repository | not an ensemble", lambda editor: editor.delete("a")),
    "to delete a missing ensemble": (EnsembleError, "no ensemble 'x'", lambda editor: editor.delete("x")),
    "weight 0": (EnsembleError, "above 0 | got 0", lambda editor: editor.weight("ensemble", {"a": 0.0})),
    "weight nan": (EnsembleError, "above 0 | nan", lambda editor: editor.weight("ensemble", {"a": float("nan")})),
    "too small a weight": (EnsembleError, "1e-07", lambda editor: editor.weight("ensemble", {"a": 1e-9})),
    "a path": (EnsembleError, "'../x'", lambda editor: editor.create("../x", ["a"])),
    "a path of a member": (EnsembleError, "'../a'", lambda editor: editor.add("ensemble", ["../a"])),
    "a reserved name": (EnsembleError, "average_", lambda editor: editor.create("average_of_all", ["a"])),
    "exists": (ExistsError, "ensemble | already", lambda editor: editor.create("ensemble", ["a"])),
    "the name of a member": (ExportError, "d | already", lambda editor: editor.create("d", ["a"])),
    "itself": (EnsembleError, "'ensemble' is an ensemble", lambda editor: editor.add("ensemble", ["ensemble"])),
    "an ensemble as a member": (
        EnsembleError,
        "'ensemble' is an ensemble | members",
        lambda editor: editor.create("outer", ["ensemble"]),
    ),
    "a string for a list": (InputError, "members | list | 'd'", lambda editor: editor.add("ensemble", "d")),
    "a string as a weight": (
        EnsembleError,
        "'a' | above 0 | '3'",
        lambda editor: editor.weight("ensemble", cast("dict[str, float]", {"a": "3"})),
    ),
    "a message that is not a string": (InputError, "message | None | 7", lambda editor: editor.delete("ensemble", message=7)),  # type: ignore[arg-type]
    "the history's name": (
        EnsembleError,
        "'history.jsonl'",
        lambda editor: editor.create("history.jsonl", ["a"]),
    ),
    "two replacements": (
        EnsembleError,
        "'a' | 2",
        lambda editor: editor.add("ensemble", ["d", "b@2"], in_place_of="a"),
    ),
    "no such average": (
        EnsembleError,
        "average | probabilities, logits | 'median'",
        lambda editor: editor.average("ensemble", "median"),
    ),
    "a weight of no member": (
        EnsembleError,
        "d | members | a",
        lambda editor: editor.create("x", ["a"], weights={"d": 2}),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_edits_are_refused_before_anything_changes(served_world: World, case: str) -> None:
    kind, facts, edit = REFUSED[case]
    before, times = content(served_world.folder), times_of_change(served_world.folder)
    with recording_client(served_world) as (client, calls):
        with raises(kind, facts):
            edit(Ensembles(served_world.folder, client))
    assert (content(served_world.folder), times_of_change(served_world.folder)) == (before, times)
    assert calls == []


def test_a_file_with_a_wrong_digest_cannot_become_a_member(world: World, editor: Ensembles) -> None:
    path = world.folder / "d/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match=r"add 'ensemble'(.|\n)*/d/1/model\.onnx: ") as caught:
        editor.add("ensemble", ["d"])
    assert any("sha256" in finding.lower() for finding in caught.value.findings)
    assert content(world.folder) == before
    world.check(ABC)
