"""Ensembles with two averaging models, the form of earlier versions: served, edited, rolled back, and converted to one model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from defensemble import Client, DefensembleError, OutputRequest
from defensemble.cli import cli
from defensemble.ensembles import Ensembles, Replica
from defensemble_export import write_files
from defensemble_export.editing import read_history
from defensemble_export.editing.plan import plan_ensemble
from defensemble_repository.names import AVERAGING_NAME
from defensemble_repository.reader import read_config, read_ensemble
from defensemble_server import ServeOptions, serve
from tests.support import tiny
from tests.support.facts import assert_each
from tests.support.two_models import write_interrupted_edit, write_old_repository
from tests.support.world import KEY, World

NAMES = ("ensemble", "plain", "trimmed")
SEEDS = {"alpha": 1, "beta": 2, "gamma": 3}


@dataclass
class OldWorld(World):
    """The old repository and the server that reads it; `messages` are those of `serve` at its start."""

    messages: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OldWorld]:
    folder = write_old_repository(tmp_path_factory.mktemp("old") / "repository")
    messages: list[str] = []
    options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, admin_key=KEY)
    with serve(folder, options, on_progress=messages.append) as server:
        yield OldWorld(folder, server, tiny.content(folder), messages)


@pytest.fixture
def old(served: OldWorld) -> Iterator[OldWorld]:
    """A server and its repository, restored after each test."""
    yield served
    content = tiny.content(served.folder)
    assert {path: content.get(path) for path in served.before if AVERAGING_NAME.match(path)} == {
        path: content for path, content in served.before.items() if AVERAGING_NAME.match(path)
    }, "the old models are not touched"
    served.restore()


def read_averaging(folder: Path, name: str = "ensemble") -> list[str]:
    steps = read_config(folder / name).ensemble_scheduling.step
    return [step.model_name for step in steps if AVERAGING_NAME.fullmatch(step.model_name)]


def expected_of(images: tiny.Array, folder: Path, name: str) -> dict[str, tiny.Array]:
    """Compute the declared outputs of an ensemble with numpy."""
    ensemble = read_ensemble(folder, name)
    shares = np.array(ensemble.weights)
    logits = np.stack([tiny.logits(SEEDS[member.model], images) for member in ensemble.members])
    members = tiny.softmax(logits)
    mixture = np.tensordot(shares, members, 1)
    mean = mixture if ensemble.average == "probabilities" else tiny.softmax(np.tensordot(shares, logits, 1))
    expected = {
        "probabilities": mean,
        "member_probabilities": members.transpose(1, 0, 2),
        "entropy": -(mean * np.log(mean)).sum(-1, keepdims=True),
        "mutual_information": (np.tensordot(shares, (members * np.log(members)).sum(-1), 1) - (mixture * np.log(mixture)).sum(-1))[:, None],
    }
    return {tensor.name: expected[tensor.name] for tensor in read_config(folder / name).output}


def check_answers(world: World) -> None:
    images = tiny.images(4)
    with Client(world.url()) as client:
        for name in NAMES:
            expected = expected_of(images, world.folder, name)
            got = client.transport.infer(name, {"images": images}, [OutputRequest(output) for output in expected], 20)
            for output, values in expected.items():
                np.testing.assert_allclose(got[output], values, atol=1e-5, err_msg=f"{output} of {name}")


def reload_under_load(world: World, callers: int, times: int) -> int:
    """Convert all ensembles and restore the old ones while clients send requests; return the number of answers."""
    images = tiny.images(3, seed=11)
    wanted = {name: expected_of(images, world.folder, name) for name in NAMES}
    stop, errors, answered = threading.Event(), [], [0] * callers
    ready = threading.Barrier(callers + 1)

    def call(number: int) -> None:
        name = NAMES[number % len(NAMES)]
        outputs = [OutputRequest(output) for output in wanted[name]]
        with Client(world.url("grpc" if number % 2 else "http")) as client:
            waits = True
            while not stop.is_set():
                try:
                    got = client.transport.infer(name, {"images": images}, outputs, 20)
                except DefensembleError as error:
                    errors.append(str(error))
                    continue
                finally:
                    if waits:
                        ready.wait(20)
                        waits = False
                if any(np.abs(got[output] - values).max() > 1e-5 for output, values in wanted[name].items()):
                    errors.append(f"a wrong answer of '{name}'")
                answered[number] += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        ready.wait(20)
        with world.client() as client:
            for last in [False] * (times - 1) + [True]:
                assert [applied.ensemble for applied in Ensembles(world.folder, client).reload()] == list(NAMES)
                if not last:
                    world.restore()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert errors == []
    return sum(answered)


def test_serve_warns_about_two_averaging_models(old: OldWorld) -> None:
    check_answers(old)
    warnings = [line for line in old.messages if "can crash" in line]
    assert len(warnings) == 2
    for name, line in zip(("ensemble", "trimmed"), warnings, strict=True):
        assert f"`defensemble ensemble reload {name}`" in line
    with old.client() as client:
        findings = Ensembles(old.folder, client).check()
        assert {(finding.model, finding.is_error) for finding in findings} == {("ensemble", False), ("trimmed", False)}
        assert [set(state.served.values()) for state in Ensembles(old.folder, client).show()] == [{"yes"}] * len(NAMES)


def test_conversion_under_load_loses_no_request(old: OldWorld) -> None:
    before = old.averaging()
    assert reload_under_load(old, callers=3, times=1) >= 3
    check_answers(old)
    after = old.averaging()
    assert len(after) == len(NAMES)
    assert not set(before) & set(after), "the old models are unloaded"
    assert Ensembles(old.folder).check() == []
    last = read_history(old.folder)[-1]
    assert (last.action, last.ensemble) == ("reload", "trimmed")
    assert "by one, " in last.changes[0]
    with old.client() as client:
        again = Ensembles(old.folder, client).reload()
    assert [applied.edit for applied in again] == [None] * len(NAMES)


@pytest.mark.slow
def test_many_conversions_under_load_lose_no_request(old: OldWorld) -> None:
    assert reload_under_load(old, callers=9, times=8) > 100
    check_answers(old)


def test_edits_and_rollbacks_write_one_averaging_model(old: OldWorld) -> None:
    before = read_ensemble(old.folder, "ensemble")
    with old.client() as client:
        editor = Ensembles(old.folder, client)
        applied = editor.weight("ensemble", {"beta": 5.0})
        assert_each(applied.changes, "weight | beta@1 | 1 -> 5 | 28.6 % -> 66.7 %")
        (model,) = read_averaging(old.folder)
        assert any("rollback" in remark for remark in applied.remarks), "the remark about the lost comment"
        check_answers(old)
        editor.rollback(name="ensemble")
        assert read_ensemble(old.folder, "ensemble") == before
        assert read_config(old.folder / "ensemble").parameters["owner"].string_value == "vision"
        assert len(read_averaging(old.folder)) == 1
        assert read_averaging(old.folder) != [model]
        check_answers(old)
        old_edits = [edit for edit in read_history(old.folder) if edit.ensemble == "ensemble"]
        editor.rollback(2, name="ensemble")  # who owns it, gamma
        assert [member.model for member in read_ensemble(old.folder, "ensemble").members] == ["alpha", "beta"]
        assert "owner" not in read_config(old.folder / "ensemble").parameters
        check_answers(old)
        editor.rollback(name="ensemble", to=old_edits[3].id)  # forward, to an average of logits
        assert read_ensemble(old.folder, "ensemble").average == "logits"
        assert len(read_averaging(old.folder)) == 1
        check_answers(old)


def test_states_are_compared_without_averaging_models(tmp_path: Path) -> None:
    folder = write_old_repository(tmp_path / "repository")
    other = write_old_repository(tmp_path / "other")
    for name in NAMES:
        plan = plan_ensemble(folder, read_ensemble(folder, name))
        write_files(folder, {**plan.averaging, **plan.files})
    warnings: list[str] = []
    editor = Ensembles(folder, on_warning=warnings.append)
    undone = [edit for edit in read_history(folder) if edit.ensemble == "ensemble"][2]
    applied = editor.rollback(name="ensemble")
    assert warnings == [], "nothing has changed since the last edit"
    assert applied.edit is not None
    assert applied.edit.undoes == (undone.id,)
    stop = Ensembles.over([Replica(folder, ()), Replica(other, ())])
    assert [finding.model for finding in stop.check("plain")] == []
    stop.weight("plain", {"beta": 2.0})
    assert [read_averaging(path, "plain") for path in (folder, other)] == [read_averaging(folder, "plain")] * 2


def test_applying_the_current_state_converts_once(tmp_path: Path) -> None:
    folder = write_old_repository(tmp_path / "repository")
    editor = Ensembles(folder)
    for expected in (True, False):
        applied = editor.apply(editor.declared("ensemble"))
        assert (applied.edit is not None) == expected
    for name, edit in (("trimmed", editor.weight("trimmed", {"alpha": 1.0})), ("plain", editor.average("plain", "logits"))):
        assert edit.edit is not None
        assert len(read_averaging(folder, name)) == 1
    assert editor.check() == []


@pytest.mark.parametrize(("when", "weight"), [("before_config", 1.0), ("after_config", 4.0)])
def test_recovers_an_interrupted_edit_of_the_old_form(tmp_path: Path, when: str, weight: float) -> None:
    folder = write_interrupted_edit(tmp_path / "repository", when)
    before = tiny.content(folder)
    warnings: list[str] = []
    editor = Ensembles(folder, on_warning=warnings.append)
    (state,) = editor.show("ensemble")
    assert any(("finishing" if weight > 1 else "undoing") in line for line in warnings)
    assert state.ensemble is not None
    assert [member.weight for member in state.ensemble.members] == [2.0, weight, 0.5]
    assert len(read_averaging(folder)) == 2, "it is recovered in its old form"
    assert not (folder / "pending-edit.json").exists()
    assert [edit.message for edit in read_history(folder)].count("beta counts more") == (weight > 1)
    editor.reload("ensemble")
    assert read_ensemble(folder, "ensemble") == state.ensemble
    after = tiny.content(folder)
    assert all(after[path] == content for path, content in before.items() if path in after and AVERAGING_NAME.match(path))
    editor.rollback(2 if weight > 1 else 1, name="ensemble")
    assert [member.weight for member in read_ensemble(folder, "ensemble").members] == [2.0, 1.0, 0.5]
    assert editor.check("ensemble") == []


def test_reload_without_a_name_reloads_all(tmp_path: Path) -> None:
    folder = write_old_repository(tmp_path / "repository")
    applied = CliRunner().invoke(cli, ["ensemble", "reload", "--repository", str(folder), "--files-only"])
    assert applied.exit_code == 0, applied.output
    assert [len(read_averaging(folder, name)) for name in NAMES] == [1, 1, 1]
