"""Hand edits of configurations are taken up as they are meant, or told, and never believed where a server refuses them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble import InputError
from defensemble.ensembles import EditFailedError, EditRefusedError, Ensembles
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.tiny import content, edit_config
from tests.support.world import ABC, World, calling, recorded, times_of_change


def read(world: World, model: str) -> schema.ModelConfig:
    return config_from_pbtxt((world.folder / model / "config.pbtxt").read_text(), model)


def write(world: World, model: str, config: schema.ModelConfig) -> None:
    (world.folder / model / "config.pbtxt").write_bytes(pbtxt_from_config(config))


def average_of(world: World, name: str = "ensemble") -> str:
    """The model that gives an ensemble's probabilities, as it lies on disk."""
    return next(str(step.model_name) for step in read(world, name).ensemble_scheduling.step if step.model_name.startswith("average_"))


@pytest.fixture
def one(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def test_without_a_hand_edit_reload_changes_nothing(world: World, one: Ensembles) -> None:
    before, times = content(world.folder), times_of_change(world.folder)
    (done,) = one.reload()
    assert (done.edit, done.changes) == (None, ())
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    world.check(ABC)


def test_weights_in_the_parameters_of_the_average_are_taken_up(world: World, one: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    assert any(average in str(finding) for finding in one.check()), "check tells of it"
    with calling(world.server.grpc_url) as callers:
        (done,) = one.reload("ensemble", message="by hand")
    members = {"a@1": 1.0, "b@1": 5.0, "c@1": 2.0}
    world.check(members)
    callers.check([(ABC, "probabilities"), (members, "probabilities")])
    assert done.edit is not None
    assert done.edit.action == "reload"
    assert_each(sorted(done.changes), "weight | b@1 | 1 -> 5 | 33.3 % -> 62.5 %", "weight | c@1 | 1 -> 2 | 33.3 % -> 25.0 %")
    assert average_of(world) != average
    assert one.check() == []
    one.rollback()
    world.check(ABC)


def test_a_hand_edit_that_another_edit_takes_up_is_said_and_can_be_gone_back_to(world: World, one: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    done = one.weight("ensemble", {"a": 4.0})
    assert any("not loaded yet" in remark for remark in done.remarks)
    world.check({"a@1": 4.0, "b@1": 5.0, "c@1": 2.0})
    one.rollback()
    world.check({"a@1": 1.0, "b@1": 5.0, "c@1": 2.0})
    assert one.check() == []


def test_what_a_first_hand_edit_replaced_is_told_as_not_known_where_no_server_knows(world: World) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    files = Ensembles(world.folder)
    files.reload("ensemble")
    assert files.check() == []
    with pytest.raises(InputError, match=r"'ensemble'.*\b[0-9a-f]{12}\b"):
        files.rollback()


def test_average_in_the_parameters_is_taken_up(world: World, one: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["average"].string_value = "logits"
    write(world, average, config)
    (done,) = one.reload()
    assert_each(done.changes, "logits | probabilities")
    world.check(ABC, "logits")


def test_a_version_in_the_steps_is_taken_up(world: World, one: Ensembles) -> None:
    config = read(world, "ensemble")
    next(step for step in config.ensemble_scheduling.step if step.model_name == "b").model_version = 2
    write(world, "ensemble", config)
    (done,) = one.reload()
    assert_each(done.changes, "b | version | 1 -> 2")
    members = {"a@1": 1.0, "b@2": 1.0, "c@1": 1.0}
    world.check(members)
    assert one.check() == []
    one.rollback()
    world.check(ABC)
    one.rollback(to=one.history()[0].id)
    world.check(members)


def test_the_instances_of_a_member_are_taken_up(world: World, one: Ensembles) -> None:
    config = read(world, "a")
    config.instance_group.add(count=2, kind=schema.ModelInstanceGroup.KIND_CPU)
    write(world, "a", config)
    (state,) = one.show("ensemble")
    assert "outdated" in state.members[0].served[world.server.grpc_url]
    with recorded(world) as (client, calls), calling(world.server.grpc_url) as callers:
        (done,) = Ensembles(world.folder, client).reload("ensemble")
    callers.check([(ABC, "probabilities")])
    assert "load a" in calls
    assert done.loaded[world.server.grpc_url] == ("a",)
    with world.client() as client:
        assert client.transport.model_config("a", 20)["instance_group"][0]["count"] == 2
    world.check(ABC)


def test_a_smaller_batch_of_the_ensemble_is_taken_up(world: World, one: Ensembles) -> None:
    edit_config(world.folder, "ensemble", max_batch_size=4)
    average = average_of(world)
    (done,) = one.reload()
    assert done.edit is not None
    assert done.changes, "it is told"
    assert average_of(world) != average, "an averaging model takes what the ensemble takes"
    with world.client() as client:
        assert client.transport.model_config("ensemble", 20)["max_batch_size"] == 4
    assert one.check() == []
    one.rollback()
    with world.client() as client:
        assert client.transport.model_config("ensemble", 20)["max_batch_size"] == 8
    world.check(ABC)


def test_a_batch_above_a_members_is_refused_and_left_as_it_was_written(world: World, one: Ensembles) -> None:
    edit_config(world.folder, "ensemble", max_batch_size=16)
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match=r"reload 'ensemble'(.|\n)*max_batch_size"):
        one.reload()
    assert content(world.folder) == before


def test_what_stays_by_hand_in_the_ensembles_configuration_survives_edits(world: World, one: Ensembles) -> None:
    config = read(world, "ensemble")
    config.parameters["owner"].string_value = "us"
    config.version_policy.all.SetInParent()
    del config.output[3]  # mutual_information
    del config.ensemble_scheduling.step[-1].output_map["mutual_information"]
    write(world, "ensemble", config)
    (done,) = one.reload()
    assert done.edit is not None
    assert_each(done.changes, "config.pbtxt")
    one.weight("ensemble", {"a": 3.0})
    config = read(world, "ensemble")
    assert config.parameters["owner"].string_value == "us"
    assert [tensor.name for tensor in config.output] == ["probabilities", "member_probabilities", "entropy"]
    one.rollback(2)
    world.check(ABC)


def test_comments_stay_where_nothing_changes(world: World, one: Ensembles) -> None:
    for model in ("ensemble", "a", average_of(world)):
        path = world.folder / model / "config.pbtxt"
        path.write_bytes(b"# mine\n" + path.read_bytes())
    times = times_of_change(world.folder)
    one.reload()
    one.add("ensemble", ["d"])
    after = times_of_change(world.folder)
    changed = {name for name in times if times[name] != after.get(name)}
    assert changed == {"ensemble/config.pbtxt"}
    world.check({**ABC, "d@1": 1.0})


def test_a_configuration_that_nobody_can_read_is_told_with_its_line_and_nothing_is_loaded(world: World, one: Ensembles) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    good = path.read_bytes()
    path.write_bytes(good + b"max_batch_sise: 3\n")
    line = good.count(b"\n") + 1
    before = content(world.folder)
    with recorded(world) as (client, calls), pytest.raises(EditRefusedError, match=f"config.pbtxt:{line}.*max_batch_sise"):
        Ensembles(world.folder, client).reload("ensemble")
    assert (content(world.folder), calls) == (before, [])


def test_what_an_ensemble_cannot_have_is_refused_with_its_line(world: World, one: Ensembles) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    old = path.read_bytes()
    path.write_bytes(old + b'model_warmup { name: "w" batch_size: 1 }\n')
    line = old.count(b"\n") + 1
    with calling(world.server.grpc_url) as callers:
        with raises(EditRefusedError, f"config.pbtxt:{line} | model_warmup"):
            one.reload("ensemble")
    callers.check([(ABC, "probabilities")])


def test_a_member_that_the_server_refuses_serves_on_as_it_was(world: World, one: Ensembles) -> None:
    config = read(world, "a")
    config.parameters["intra_op_thread_count"].string_value = "many"
    write(world, "a", config)
    with calling(world.server.grpc_url) as callers:
        with raises(EditFailedError, f"load a on {world.server.grpc_url}") as failed:
            one.reload("ensemble")
        assert "intra_op_thread_count" in failed.value.why
        assert failed.value.put_back
    callers.check([(ABC, "probabilities")])
    assert read(world, "a") == config, "what the operator wrote stays, to be mended"
    assert one.history() == []
    world.check_tidy()
    config.parameters["intra_op_thread_count"].string_value = "1"
    write(world, "a", config)
    one.reload("ensemble")
    world.check(ABC)


def test_reload_without_a_name_takes_up_all_ensembles(world: World, one: Ensembles) -> None:
    one.create("canary", ["a", "d"])
    for name in ("ensemble", "canary"):
        average = average_of(world, name)
        config = read(world, average)
        config.parameters["weights"].string_value = "[2, 1]" if name == "canary" else "[2, 1, 1]"
        write(world, average, config)
    assert [done.ensemble for done in one.reload()] == ["canary", "ensemble"]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    world.check({"a@1": 2.0, "d@1": 1.0}, name="canary")


def test_a_dry_run_of_reload_tells_and_changes_nothing(world: World, one: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[4, 1, 1]"
    write(world, average, config)
    before = content(world.folder)
    (done,) = one.reload(dry_run=True)
    assert (done.dry_run, done.edit) == (True, None)
    assert_facts(done.changes[0], "weight | a@1 | 1 -> 4 | 33.3 % -> 66.7 %")
    assert content(world.folder) == before
