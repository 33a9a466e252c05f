"""Reload applies hand edits, or refuses them and keeps serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tritonclient.grpc import model_config_pb2 as schema

from defensemble import InputError
from defensemble.ensembles import EditFailedError, EditRefusedError, Ensembles
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from tests.support.facts import assert_each, assert_facts, raises
from tests.support.tiny import content, edit_config
from tests.support.world import ABC, World, calling, recording_client, times_of_change


def read(world: World, model: str) -> schema.ModelConfig:
    return config_from_pbtxt((world.folder / model / "config.pbtxt").read_text(), model)


def write(world: World, model: str, config: schema.ModelConfig) -> None:
    (world.folder / model / "config.pbtxt").write_bytes(pbtxt_from_config(config))


def average_of(world: World, name: str = "ensemble") -> str:
    """Return the averaging model of an ensemble on disk."""
    return next(str(step.model_name) for step in read(world, name).ensemble_scheduling.step if step.model_name.startswith("average_"))


@pytest.fixture
def editor(world: World) -> Iterator[Ensembles]:
    with world.client() as client:
        yield Ensembles(world.folder, client)


def test_reload_without_hand_edits_changes_nothing(world: World, editor: Ensembles) -> None:
    before, times = content(world.folder), times_of_change(world.folder)
    (applied,) = editor.reload()
    assert (applied.edit, applied.changes) == (None, ())
    assert (content(world.folder), times_of_change(world.folder)) == (before, times)
    world.check(ABC)


def test_reload_applies_weights_in_averaging_parameters(world: World, editor: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    assert any(average in str(finding) for finding in editor.check()), "check reports it"
    with calling(world.server.grpc_url) as callers:
        (applied,) = editor.reload("ensemble", message="by hand")
    members = {"a@1": 1.0, "b@1": 5.0, "c@1": 2.0}
    world.check(members)
    callers.check([(ABC, "probabilities"), (members, "probabilities")])
    assert applied.edit is not None
    assert applied.edit.action == "reload"
    assert_each(sorted(applied.changes), "weight | b@1 | 1 -> 5 | 33.3 % -> 62.5 %", "weight | c@1 | 1 -> 2 | 33.3 % -> 25.0 %")
    assert average_of(world) != average
    assert editor.check() == []
    editor.rollback()
    world.check(ABC)


def test_another_edit_applies_a_hand_edit_with_a_remark(world: World, editor: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    applied = editor.weight("ensemble", {"a": 4.0})
    assert any("not loaded yet" in remark for remark in applied.remarks)
    world.check({"a@1": 4.0, "b@1": 5.0, "c@1": 2.0})
    editor.rollback()
    world.check({"a@1": 1.0, "b@1": 5.0, "c@1": 2.0})
    assert editor.check() == []


def test_an_unknown_state_before_a_hand_edit_cannot_be_rolled_back(world: World) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[1, 5, 2]"
    write(world, average, config)
    files = Ensembles(world.folder)
    files.reload("ensemble")
    assert files.check() == []
    with pytest.raises(InputError, match=r"'ensemble'.*\b[0-9a-f]{12}\b"):
        files.rollback()


def test_reload_applies_the_average_in_parameters(world: World, editor: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["average"].string_value = "logits"
    write(world, average, config)
    (applied,) = editor.reload()
    assert_each(applied.changes, "logits | probabilities")
    world.check(ABC, "logits")


def test_reload_applies_a_version_in_steps(world: World, editor: Ensembles) -> None:
    config = read(world, "ensemble")
    next(step for step in config.ensemble_scheduling.step if step.model_name == "b").model_version = 2
    write(world, "ensemble", config)
    (applied,) = editor.reload()
    assert_each(applied.changes, "b | version | 1 -> 2")
    members = {"a@1": 1.0, "b@2": 1.0, "c@1": 1.0}
    world.check(members)
    assert editor.check() == []
    editor.rollback()
    world.check(ABC)
    editor.rollback(to=editor.history()[0].id)
    world.check(members)


def test_reload_applies_member_instances(world: World, editor: Ensembles) -> None:
    config = read(world, "a")
    config.instance_group.add(count=2, kind=schema.ModelInstanceGroup.KIND_CPU)
    write(world, "a", config)
    (state,) = editor.show("ensemble")
    assert "outdated" in state.members[0].served[world.server.grpc_url]
    with recording_client(world) as (client, calls), calling(world.server.grpc_url) as callers:
        (applied,) = Ensembles(world.folder, client).reload("ensemble")
    callers.check([(ABC, "probabilities")])
    assert "load a" in calls
    assert applied.loaded[world.server.grpc_url] == ("a",)
    with world.client() as client:
        assert client.transport.model_config("a", 20)["instance_group"][0]["count"] == 2
    world.check(ABC)


def test_reload_applies_a_smaller_batch(world: World, editor: Ensembles) -> None:
    edit_config(world.folder, "ensemble", max_batch_size=4)
    average = average_of(world)
    (applied,) = editor.reload()
    assert applied.edit is not None
    assert applied.changes
    assert average_of(world) != average, "an averaging model has the batch of its ensemble"
    with world.client() as client:
        assert client.transport.model_config("ensemble", 20)["max_batch_size"] == 4
    assert editor.check() == []
    editor.rollback()
    with world.client() as client:
        assert client.transport.model_config("ensemble", 20)["max_batch_size"] == 8
    world.check(ABC)


def test_reload_refuses_a_batch_above_that_of_a_member(world: World, editor: Ensembles) -> None:
    edit_config(world.folder, "ensemble", max_batch_size=16)
    before = content(world.folder)
    with pytest.raises(EditRefusedError, match=r"reload 'ensemble'(.|\n)*max_batch_size"):
        editor.reload()
    assert content(world.folder) == before


def test_hand_edits_of_other_fields_survive_edits(world: World, editor: Ensembles) -> None:
    config = read(world, "ensemble")
    config.parameters["owner"].string_value = "us"
    config.version_policy.all.SetInParent()
    del config.output[3]  # mutual_information
    del config.ensemble_scheduling.step[-1].output_map["mutual_information"]
    write(world, "ensemble", config)
    (applied,) = editor.reload()
    assert applied.edit is not None
    assert_each(applied.changes, "config.pbtxt")
    editor.weight("ensemble", {"a": 3.0})
    config = read(world, "ensemble")
    assert config.parameters["owner"].string_value == "us"
    assert [tensor.name for tensor in config.output] == ["probabilities", "member_probabilities", "entropy"]
    editor.rollback(2)
    world.check(ABC)


def test_comments_stay_in_unchanged_files(world: World, editor: Ensembles) -> None:
    for model in ("ensemble", "a", average_of(world)):
        path = world.folder / model / "config.pbtxt"
        path.write_bytes(b"# mine\n" + path.read_bytes())
    times = times_of_change(world.folder)
    editor.reload()
    editor.add("ensemble", ["d"])
    after = times_of_change(world.folder)
    changed = {name for name in times if times[name] != after.get(name)}
    assert changed == {"ensemble/config.pbtxt"}
    world.check({**ABC, "d@1": 1.0})


def test_reload_reports_the_line_of_an_unreadable_configuration(world: World, editor: Ensembles) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    good = path.read_bytes()
    path.write_bytes(good + b"max_batch_sise: 3\n")
    line = good.count(b"\n") + 1
    before = content(world.folder)
    with recording_client(world) as (client, calls), pytest.raises(EditRefusedError, match=f"config.pbtxt:{line}.*max_batch_sise"):
        Ensembles(world.folder, client).reload("ensemble")
    assert (content(world.folder), calls) == (before, [])


def test_reload_reports_the_line_of_an_unsupported_field(world: World, editor: Ensembles) -> None:
    path = world.folder / "ensemble/config.pbtxt"
    old = path.read_bytes()
    path.write_bytes(old + b'model_warmup { name: "w" batch_size: 1 }\n')
    line = old.count(b"\n") + 1
    with calling(world.server.grpc_url) as callers:
        with raises(EditRefusedError, f"config.pbtxt:{line} | model_warmup"):
            editor.reload("ensemble")
    callers.check([(ABC, "probabilities")])


def test_a_refused_member_keeps_serving_its_old_state(world: World, editor: Ensembles) -> None:
    config = read(world, "a")
    config.parameters["intra_op_thread_count"].string_value = "many"
    write(world, "a", config)
    with calling(world.server.grpc_url) as callers:
        with raises(EditFailedError, f"load a on {world.server.grpc_url}") as caught:
            editor.reload("ensemble")
        assert "intra_op_thread_count" in caught.value.reason
        assert caught.value.restore_report
    callers.check([(ABC, "probabilities")])
    assert read(world, "a") == config, "the hand edit stays, to be corrected"
    assert editor.history() == []
    world.check_tidy()
    config.parameters["intra_op_thread_count"].string_value = "1"
    write(world, "a", config)
    editor.reload("ensemble")
    world.check(ABC)


def test_reload_without_a_name_reloads_all_ensembles(world: World, editor: Ensembles) -> None:
    editor.create("canary", ["a", "d"])
    for name in ("ensemble", "canary"):
        average = average_of(world, name)
        config = read(world, average)
        config.parameters["weights"].string_value = "[2, 1]" if name == "canary" else "[2, 1, 1]"
        write(world, average, config)
    assert [applied.ensemble for applied in editor.reload()] == ["canary", "ensemble"]
    world.check({"a@1": 2.0, "b@1": 1.0, "c@1": 1.0})
    world.check({"a@1": 2.0, "d@1": 1.0}, name="canary")


def test_a_dry_run_of_reload_changes_nothing(world: World, editor: Ensembles) -> None:
    average = average_of(world)
    config = read(world, average)
    config.parameters["weights"].string_value = "[4, 1, 1]"
    write(world, average, config)
    before = content(world.folder)
    (applied,) = editor.reload(dry_run=True)
    assert (applied.dry_run, applied.edit) == (True, None)
    assert_facts(applied.changes[0], "weight | a@1 | 1 -> 4 | 33.3 % -> 66.7 %")
    assert content(world.folder) == before
