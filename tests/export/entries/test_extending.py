"""Exports into an existing ensemble: what is kept, what changes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import EnsembleError, planned_files, write_files
from defensemble_export.entries.members import check_request
from defensemble_repository.averaging import read_averaging
from defensemble_repository.configs import Interface, averaging_config, ensemble_config
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import ensemble_from_configs, read_ensemble
from defensemble_server.repository import read_repository
from tests.support import tiny
from tests.support.facts import raises
from tests.support.tiny import member


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Members a, b and c, b with weight 3, averaged by logits."""
    return tiny.write_repository(tmp_path / "repository", {"a": 1, "b": 2, "c": 3}, average="logits", weight={"b": 3.0}, max_batch_size=32)


def edit(path: Path, change: Callable[[schema.ModelConfig], object]) -> None:
    config = config_from_pbtxt(path.read_text(), str(path))
    change(config)
    path.write_bytes(pbtxt_from_config(config))


def config_of(repository: Path, name: str = "ensemble") -> schema.ModelConfig:
    return config_from_pbtxt((repository / name / "config.pbtxt").read_text(), name)


def check_served(repository: Path, expected: Ensemble) -> None:
    """Check that the files are read back as the ensemble, also by the server."""
    assert read_ensemble(repository, expected.name) == expected
    state = read_repository(repository)
    assert state.problems == {}
    assert state.models[expected.name].members == [(member.model, member.version) for member in expected.members]
    weights = [member.weight for member in expected.members]
    assert read_averaging(state.configs[expected.name], state.configs) == (expected.average, weights)


def test_keeps_other_members_weights_average_and_hand_edits(repository: Path) -> None:
    def by_hand(config: schema.ModelConfig) -> None:
        config.max_batch_size = 16
        config.parameters["note"].string_value = "mine"
        config.response_cache.enable = True

    edit(repository / "ensemble/config.pbtxt", by_hand)
    write_files(repository, planned_files(repository, [member("d", 4), member("a", 9)], replace=True))
    members = (Member("a", 2), Member("b", 1, 3.0), Member("c"), Member("d"))
    check_served(repository, Ensemble("ensemble", members, "logits"))
    config = config_of(repository)
    assert (config.max_batch_size, config.parameters["note"].string_value, config.response_cache.enable) == (16, "mine", True)
    assert {tensor.name: list(tensor.dims) for tensor in config.output}["member_probabilities"] == [4, 3]
    assert config_of(repository, "d").max_batch_size == 64


def test_options_change_only_what_they_name(repository: Path) -> None:
    plan = planned_files(repository, [member("a", 9)], replace=True, average="probabilities", weights={"c": 5.0})
    write_files(repository, plan)
    check_served(repository, Ensemble("ensemble", (Member("a", 2), Member("b", 1, 3.0), Member("c", 1, 5.0)), "probabilities"))


def test_keeps_a_version_pinned_by_hand(repository: Path) -> None:
    write_files(repository, planned_files(repository, [member("a", 9)], replace=True))

    def pin(config: schema.ModelConfig) -> None:
        config.ensemble_scheduling.step[0].model_version = 1

    edit(repository / "ensemble/config.pbtxt", pin)
    write_files(repository, planned_files(repository, [member("b", 8)], replace=True))
    check_served(repository, Ensemble("ensemble", (Member("a", 1), Member("b", 2, 3.0), Member("c")), "logits"))


def test_removed_outputs_stay_removed(repository: Path) -> None:
    def take_out(config: schema.ModelConfig) -> None:
        del config.output[1:]
        for output in ("member_probabilities", "entropy", "mutual_information"):
            del config.ensemble_scheduling.step[-1].output_map[output]

    edit(repository / "ensemble/config.pbtxt", take_out)
    plan = planned_files(repository, [member("d", 4)], replace=True)
    write_files(repository, plan)
    assert dict(config_of(repository).ensemble_scheduling.step[-1].output_map) == {"probabilities": "probabilities"}
    assert [tensor.name for tensor in config_of(repository).output] == ["probabilities"]
    check_served(repository, Ensemble("ensemble", (Member("a"), Member("b", 1, 3.0), Member("c"), Member("d")), "logits"))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdf"), st.integers(1, 2**40), st.one_of(st.integers(1, 9), st.floats(0.01, 100))),
        min_size=1,
        max_size=5,
        unique_by=lambda member: member[:2],
    ),
    st.sampled_from(["probabilities", "logits"]),
)
def test_round_trip_of_configurations(members: list[tuple[str, int, float]], average: str) -> None:
    ensemble = Ensemble("e", tuple(Member(*member) for member in members), average)
    config = ensemble_config(ensemble, Interface(tiny.SHAPE, 3, 8))
    averaging = averaging_config(ensemble, 3, 8, digest="0")
    assert ensemble_from_configs("e", {"e": config, averaging.name: averaging}) == ensemble


def _rewire(config: schema.ModelConfig) -> None:
    config.ensemble_scheduling.step[0].output_map["logits"] = "logits_1"


def _follow_the_newest(config: schema.ModelConfig) -> None:
    config.ensemble_scheduling.step[0].model_version = -1


def _add_a_step(config: schema.ModelConfig) -> None:
    step = config.ensemble_scheduling.step.add(model_name="alarm", model_version=1)
    step.input_map["probabilities"] = "probabilities"


def _leave_a_member_out(config: schema.ModelConfig) -> None:
    del config.ensemble_scheduling.step[0]


def _average_elsewhere(config: schema.ModelConfig) -> None:
    config.ensemble_scheduling.step[3].model_name = "mine"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_rewire, "wired"),
        (_follow_the_newest, "'a' | -1"),
        (_add_a_step, "wired"),
        (_leave_a_member_out, "[1.0, 3.0, 1.0]"),
        (
            _average_elsewhere,
            "'mine' | average",
        ),
    ],
)
def test_refuses_a_foreign_ensemble(repository: Path, change: Callable[[schema.ModelConfig], None], text: str) -> None:
    edit(repository / "ensemble/config.pbtxt", change)
    with raises(EnsembleError, f"'ensemble' | {text} | `defensemble ensemble apply FILE`"):
        planned_files(repository, [member("d")], replace=True)
    assert planned_files(repository, [member("d")], ensemble="other"), "another ensemble does not affect this one"


@pytest.mark.parametrize("weights", ["many", "{}", "[1, 2]", "[1, 2, true]", '[1, 2, "3"]', "[1, 2, 0]", "[1, 2, NaN]"])
def test_refuses_unreadable_weights(repository: Path, weights: str) -> None:
    (average,) = repository.glob("average_*/config.pbtxt")

    def break_weights(config: schema.ModelConfig) -> None:
        config.parameters["weights"].string_value = weights

    edit(average, break_weights)
    with raises(EnsembleError, "weights | `defensemble ensemble apply FILE`"):
        planned_files(repository, [member("d")], replace=True)


def test_refuses_to_replace_a_member_with_several_versions(repository: Path) -> None:
    twice = Ensemble("ensemble", (Member("a", 1), Member("a", 2), Member("b")))
    assert twice.extended({"b": 2, "c": 1}, {}).members == (Member("a", 1), Member("a", 2), Member("b", 2), Member("c"))
    for versions, weights in (({"a": 3}, {}), ({"b": 2}, {"a": 2.0})):
        with pytest.raises(EnsembleError, match="several versions"):
            twice.extended(versions, weights)


def test_new_members_must_match_the_existing_ones(repository: Path) -> None:
    with raises(EnsembleError, "'a' | [[1, 4, 4], [3]] | 'd' | [[1, 2, 8], [3]]"):
        planned_files(repository, [member("d", input_shape=(1, 2, 8))], replace=True)
    with raises(EnsembleError, "class names | /a/labels.txt | 'd' | --ensemble"):
        planned_files(repository, [member("d", class_names=("x", "y", "z"))], replace=True)


def test_names_a_missing_member_before_slow_work(repository: Path) -> None:
    (repository / "b").rename(repository.parent / "b")
    with raises(EnsembleError, "'ensemble' | b | /repository"):
        check_request(repository, ["d"], "ensemble", average=None, weights={}, max_batch_size=None, replace=True)


def test_refuses_a_batch_that_differs_from_a_configuration(repository: Path) -> None:
    edit(repository / "a/config.pbtxt", lambda config: setattr(config, "max_batch_size", 16))
    with raises(RepositoryError, "/a/config.pbtxt | 16 | --max-batch-size | 32"):
        planned_files(repository, [member("a", 9)], ensemble=None, max_batch_size=32, replace=True)
    assert planned_files(repository, [member("a", 9)], ensemble=None, max_batch_size=16, replace=True)
    with raises(RepositoryError, "/ensemble/config.pbtxt | 32 | --max-batch-size | 128"):
        planned_files(repository, [member("d")], max_batch_size=128, replace=True)
    for there in (0, 5000):
        edit(repository / "a/config.pbtxt", lambda config, there=there: setattr(config, "max_batch_size", there))  # type: ignore[misc]
        with raises(RepositoryError, f"max_batch_size | /a/config.pbtxt | 1 to 4096 | {there}"):
            planned_files(repository, [member("a", 9)], ensemble=None, replace=True)


def test_members_are_verified_at_their_configured_batch(repository: Path) -> None:
    def batches(*names: str, ensemble: str | None = "ensemble", asked: int | None = None) -> dict[str, int]:
        return check_request(repository, names, ensemble, average=None, weights={}, max_batch_size=asked, replace=True)

    assert batches("a", "new") == {"a": 32, "new": 64}
    assert batches("new", ensemble=None, asked=7) == {"new": 7}
    edit(repository / "a/config.pbtxt", lambda config: setattr(config, "max_batch_size", 5))
    edit(repository / "ensemble/config.pbtxt", lambda config: setattr(config, "max_batch_size", 128))
    assert batches("a", "new") == {"a": 5, "new": 128}, "a new member does not reduce the batch of the ensemble"
    plan = planned_files(repository, [member("a", 9), member("new")], replace=True)
    assert config_from_pbtxt(plan["ensemble/config.pbtxt"].decode(), "").max_batch_size == 5, "at most the batch of each member"


def test_names_a_version_that_is_too_large(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    (repository / "alpha" / str(2**63 - 1)).mkdir()
    with pytest.raises(RepositoryError, match="/alpha/9223372036854775807"):
        planned_files(repository, [tiny.member("alpha", 3)], replace=True)
