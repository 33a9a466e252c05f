"""Every edit of an ensemble that a real server answers with, compared with numpy, under callers who must not notice."""

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
from tests.support.world import ABC, SEEDS, World, calling, recorded, times_of_change

Act = Callable[[Ensembles], Applied]


def test_callers_never_notice_any_edit(world: World, ensembles: Ensembles) -> None:
    states: list[tuple[dict[str, float], str]] = [(ABC, "probabilities")]

    def follows(votes: dict[str, float], average: str = "probabilities") -> None:
        world.check(votes, average)
        states.append((votes, average))

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
    assert len(world.averaging()) == 1, "averages that nobody needs are unloaded"


def test_create_makes_an_ensemble_beside_the_first(world: World, ensembles: Ensembles) -> None:
    before = times_of_change(world.folder)
    done = ensembles.create("canary", ["b", "a@1"], weights={"b": 2.0}, average="logits", message="newest b")
    world.check({"b@2": 2.0, "a@1": 1.0}, "logits", "canary")
    world.check(ABC)
    assert_each(done.changes, "creates | canary | logits", "adds | b@2 | 2 | 66.7 %", "adds | a@1 | 1 | 33.3 %")
    assert (world.folder / "canary/labels.txt").read_bytes() == (world.folder / "a/labels.txt").read_bytes()
    with world.client(admin_key=None) as client:
        assert set(client.predict(images(4), model="canary").labels) <= set(CLASSES)
    after = times_of_change(world.folder)
    assert {name: after[name] for name in before} == before, "what was there is not touched"
    assert ensembles.names() == ["canary", "ensemble"]


@pytest.fixture
def one(world: World) -> Iterator[Ensembles]:
    """An editor over gRPC, where the protocol makes no difference."""
    with world.client() as client:
        yield Ensembles(world.folder, client)


def test_an_added_vote_is_of_the_newest_version_and_two_versions_may_vote(world: World, one: Ensembles) -> None:
    one.remove("ensemble", ["b"])
    done = one.add("ensemble", ["b"])
    assert_each(done.changes, "adds | b@2 | 1 | 33.3 %")
    world.check({"a@1": 1.0, "c@1": 1.0, "b@2": 1.0})
    with raises(EnsembleError, "'b' | 'ensemble' | version 2 | --in-place-of b@2"):
        one.add("ensemble", ["b"])
    one.add("ensemble", ["b@1"], weight=0.25)
    world.check({"a@1": 1.0, "c@1": 1.0, "b@2": 1.0, "b@1": 0.25})
    with raises(EnsembleError, "'b' | 'ensemble' | b@2, b@1"):
        one.remove("ensemble", ["b"])
    one.remove("ensemble", ["b@2"])
    world.check({"a@1": 1.0, "c@1": 1.0, "b@1": 0.25})


def test_a_vote_in_the_place_of_another_takes_its_row_and_its_weight(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"b": 2.0})
    done = one.add("ensemble", ["b@2"], in_place_of="b@1", message="trained longer")
    assert_each(done.changes, "b | version | 1 -> 2")
    world.check({"a@1": 1.0, "b@2": 2.0, "c@1": 1.0})
    assert world.loaded()["b"] == [1, 2]
    one.add("ensemble", ["d"], in_place_of="a", weight=0.5)
    world.check({"d@1": 0.5, "b@2": 2.0, "c@1": 1.0})
    assert "a" not in world.loaded(), "nobody needs it"


def test_a_version_that_is_exported_while_callers_call_takes_over_the_vote(world: World, ensembles: Ensembles) -> None:
    votes = {"a@2": 1.0, "b@1": 1.0, "c@1": 1.0}
    ensembles.create("canary", ["a", "d"])
    with calling(world.server.grpc_url) as callers, calling(world.server.http_url, "canary", count=1) as others:
        write_second_version(world.folder, "a", SEEDS["a@2"])
        done = ensembles.add("ensemble", ["a"], in_place_of="a")
        assert [models[0] for models in done.loaded.values()] == ["a"]
        world.check(votes)
        ensembles.rollback()
        world.check(ABC)
    callers.check([(ABC, "probabilities"), (votes, "probabilities"), (ABC, "probabilities")])
    others.check([({"a@1": 1.0, "d@1": 1.0}, "probabilities")])
    world.check({"a@1": 1.0, "d@1": 1.0}, name="canary")


def test_an_ensemble_that_goes_leaves_the_members_that_another_has(world: World, one: Ensembles) -> None:
    one.create("canary", ["a", "d"])
    done = one.remove("ensemble", ["a"])
    assert "a" in world.loaded()
    assert set(done.unloaded) == {world.server.grpc_url}
    world.check({"a@1": 1.0, "d@1": 1.0}, name="canary")
    done = one.delete("canary", message="it lost")
    assert_each(done.changes, "deletes | canary")
    assert not (world.folder / "canary").exists()
    assert {"a", "d"} & set(world.loaded()) == set()
    assert (world.folder / "a/1/model.onnx").exists()
    assert len(world.averaging()) == 1
    world.check({"b@1": 1.0, "c@1": 1.0})
    with raises(EnsembleError, "'ensemble' | at least one | delete ensemble`"):
        one.remove("ensemble", ["b", "c"])


def test_a_configuration_that_cannot_be_read_stops_what_it_has_to_do_with_and_no_more(world: World, one: Ensembles) -> None:
    one.create("canary", ["d"])
    with (world.folder / "c/config.pbtxt").open("a") as file:
        file.write("nonsense: 3\n")
    with raises(ConfigError, 'c/config.pbtxt | "nonsense"'):
        one.weight("ensemble", {"a": 2.0})
    one.delete("canary")
    assert "canary" not in world.loaded()
    assert one.history()[-1].action == "delete"


def test_a_member_that_somebody_asks_for_itself_stays_loaded(world: World) -> None:
    with world.client() as client, calling(world.server.http_url, "a", count=1) as callers:
        done = Ensembles(world.folder, client, drain_s=0.3).remove("ensemble", ["a"])
    ((model, why),) = done.left_loaded.items()
    assert model == f"a on {world.server.grpc_url}"
    assert_facts(why, "0.3 s")
    assert callers.errors == []
    assert "a" in world.loaded()
    world.check({"b@1": 1.0, "c@1": 1.0})


def test_apply_makes_repository_and_server_what_the_file_says_and_is_idle_where_they_are(world: World, one: Ensembles) -> None:
    said = "name: ensemble\naverage: logits\nmembers:\n  - model: d\n    weight: 2\n  - model: b\n    version: 2\n  - model: a\n"
    done = one.apply(ensemble_from_yaml(said, "file"))
    votes = {"d@1": 2.0, "b@2": 1.0, "a@1": 1.0}
    world.check(votes, "logits")
    assert done.edit is not None
    assert done.edit.action == "apply"
    times, loaded = times_of_change(world.folder), world.loaded()
    for wanted in (ensemble_from_yaml(said, "file"), ensemble_from_yaml(yaml_from_ensemble(one.declared("ensemble")), "file")):
        with recorded(world) as (client, calls):
            again = Ensembles(world.folder, client).apply(wanted)
        assert (again.edit, again.changes, dict(again.loaded), calls) == (None, (), {}, [])
    assert (times_of_change(world.folder), world.loaded()) == (times, loaded)
    assert len(one.history()) == 1
    created = one.apply(Ensemble("second", (Member("a"), Member("d"))))
    assert created.edit is not None
    assert created.edit.action == "create"
    world.check({"a@1": 1.0, "d@1": 1.0}, name="second")


def test_weights_count_relative_to_each_other(world: World, one: Ensembles) -> None:
    before = content(world.folder)
    done = one.weight("ensemble", {"a": 5.0, "b": 5.0, "c": 5.0})
    assert (done.edit, done.changes) == (None, ()), "5, 5 and 5 are what 1, 1 and 1 are"
    assert content(world.folder) == before
    world.check(ABC)


def test_apply_mends_a_server_that_lags_behind_the_folder(world: World, one: Ensembles) -> None:
    Ensembles(world.folder).weight("ensemble", {"a": 4.0})  # files alone
    (state,) = one.show("ensemble")
    assert state.served[world.server.grpc_url].startswith("an older one")
    done = one.apply(one.declared("ensemble"))
    assert done.edit is None, "the files were as they should be"
    world.check({"a@1": 4.0, "b@1": 1.0, "c@1": 1.0})
    with world.client() as client:
        client.transport.unload_model("ensemble", 20)
        client.transport.unload_model("a", 20)
    assert one.apply(one.declared("ensemble")).loaded == {world.server.grpc_url: ("a",)}
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


def test_a_dry_run_says_what_would_change_and_changes_nothing(world: World, one: Ensembles) -> None:
    one.weight("ensemble", {"c": 3.0})
    before, times = content(world.folder), times_of_change(world.folder)
    for action, act in EDITS.items():
        with recorded(world) as (client, calls):
            done = act(Ensembles(world.folder, client))
        assert (done.dry_run, done.edit, calls) == (True, None, []), action
        assert done.changes, action
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    world.check({"a@1": 1.0, "b@1": 1.0, "c@1": 3.0})


REFUSED: dict[str, tuple[type[Exception], str, Act]] = {
    "no such member": (
        EnsembleError,
        "'x' | a, b, c, d",
        lambda one: one.add("ensemble", ["x"]),
    ),
    "no such version": (EnsembleError, "'a' | version 7 | 1", lambda one: one.add("ensemble", ["a@7"])),
    "no version": (EnsembleError, "MODEL@VERSION | 'a@0'", lambda one: one.add("ensemble", ["a@0"])),
    "votes already": (EnsembleError, "a@1 | twice", lambda one: one.add("ensemble", ["a@1"])),
    "does not vote": (EnsembleError, "'d' | 'ensemble' | a@1, b@1, c@1", lambda one: one.remove("ensemble", ["d"])),
    "no such ensemble": (
        EnsembleError,
        "'x' | ensemble",
        lambda one: one.weight("x", {"a": 1.0}),
    ),
    "a member as an ensemble": (
        EnsembleError,
        "'a' | repository | not an ensemble | ensemble",
        lambda one: one.weight("a", {"a": 1.0}),
    ),
    "to delete a member": (EnsembleError, "'a' | repository | not an ensemble", lambda one: one.delete("a")),
    "to delete what is not there": (EnsembleError, "no ensemble 'x'", lambda one: one.delete("x")),
    "weight 0": (EnsembleError, "above 0 | got 0", lambda one: one.weight("ensemble", {"a": 0.0})),
    "weight nan": (EnsembleError, "above 0 | nan", lambda one: one.weight("ensemble", {"a": float("nan")})),
    "too small a weight": (EnsembleError, "1e-07", lambda one: one.weight("ensemble", {"a": 1e-9})),
    "a path": (EnsembleError, "'../x'", lambda one: one.create("../x", ["a"])),
    "a path of a member": (EnsembleError, "'../a'", lambda one: one.add("ensemble", ["../a"])),
    "a reserved name": (EnsembleError, "average_", lambda one: one.create("average_of_all", ["a"])),
    "exists": (ExistsError, "ensemble | already", lambda one: one.create("ensemble", ["a"])),
    "the name of a member": (ExportError, "d | already", lambda one: one.create("d", ["a"])),
    "itself": (EnsembleError, "'ensemble' is an ensemble", lambda one: one.add("ensemble", ["ensemble"])),
    "an ensemble as a member": (
        EnsembleError,
        "'ensemble' is an ensemble | members",
        lambda one: one.create("outer", ["ensemble"]),
    ),
    "a text for a list": (InputError, "members | list | 'd'", lambda one: one.add("ensemble", "d")),
    "a text as a weight": (
        EnsembleError,
        "'a' | above 0 | '3'",
        lambda one: one.weight("ensemble", cast("dict[str, float]", {"a": "3"})),
    ),
    "a reason that is no text": (InputError, "message | None | 7", lambda one: one.delete("ensemble", message=7)),  # type: ignore[arg-type]
    "the history's name": (
        EnsembleError,
        "'history.jsonl'",
        lambda one: one.create("history.jsonl", ["a"]),
    ),
    "two in one place": (
        EnsembleError,
        "'a' | 2",
        lambda one: one.add("ensemble", ["d", "b@2"], in_place_of="a"),
    ),
    "no such average": (
        EnsembleError,
        "average | probabilities, logits | 'median'",
        lambda one: one.average("ensemble", "median"),
    ),
    "a weight for nobody": (
        EnsembleError,
        "d | members | a",
        lambda one: one.create("x", ["a"], weights={"d": 2}),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_must_not_be_is_refused_before_anything_changes(served_world: World, case: str) -> None:
    kind, told, act = REFUSED[case]
    before, times = content(served_world.folder), times_of_change(served_world.folder)
    with recorded(served_world) as (client, calls):
        with raises(kind, told):
            act(Ensembles(served_world.folder, client))
    assert (content(served_world.folder), times_of_change(served_world.folder)) == (before, times)
    assert calls == []


def test_a_file_that_is_not_what_its_configuration_says_never_votes(world: World, one: Ensembles) -> None:
    path = world.folder / "d/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match=r"add 'ensemble'(.|\n)*/d/1/model\.onnx: ") as refused:
        one.add("ensemble", ["d"])
    assert any("sha256" in finding.lower() for finding in refused.value.findings)
    assert content(world.folder) == before
    world.check(ABC)
