"""Exports onto an ensemble that exists: what it keeps, what changes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from tritonclient.grpc import model_config_pb2 as schema

from defensemble_export import EnsembleError, repository_plan, write_files
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
    """Members a, b and c, of which b weighs 3, averaged by their logits."""
    return tiny.write_repository(tmp_path / "repository", {"a": 1, "b": 2, "c": 3}, average="logits", weight={"b": 3.0}, max_batch_size=32)


def edit(path: Path, change: Callable[[schema.ModelConfig], object]) -> None:
    config = config_from_pbtxt(path.read_text(), str(path))
    change(config)
    path.write_bytes(pbtxt_from_config(config))


def config_of(repository: Path, name: str = "ensemble") -> schema.ModelConfig:
    return config_from_pbtxt((repository / name / "config.pbtxt").read_text(), name)


def check_served(repository: Path, expected: Ensemble) -> None:
    """What was written reads back as an ensemble, and the server reads the same."""
    assert read_ensemble(repository, expected.name) == expected
    found = read_repository(repository)
    assert found.problems == {}
    assert found.models[expected.name].members == [(vote.model, vote.version) for vote in expected.members]
    weights = [vote.weight for vote in expected.members]
    assert read_averaging(found.configs[expected.name], found.configs) == (expected.average, weights)


def test_other_members_weights_average_and_hand_edits_stay(repository: Path) -> None:
    def by_hand(config: schema.ModelConfig) -> None:
        config.max_batch_size = 16
        config.parameters["note"].string_value = "mine"
        config.response_cache.enable = True

    edit(repository / "ensemble/config.pbtxt", by_hand)
    write_files(repository, repository_plan(repository, [member("d", 4), member("a", 9)], replace=True))
    votes = (Member("a", 2), Member("b", 1, 3.0), Member("c"), Member("d"))
    check_served(repository, Ensemble("ensemble", votes, "logits"))
    config = config_of(repository)
    assert (config.max_batch_size, config.parameters["note"].string_value, config.response_cache.enable) == (16, "mine", True)
    assert {tensor.name: list(tensor.dims) for tensor in config.output}["member_probabilities"] == [4, 3]
    assert config_of(repository, "d").max_batch_size == 64


def test_options_change_what_they_name(repository: Path) -> None:
    plan = repository_plan(repository, [member("a", 9)], replace=True, average="probabilities", weights={"c": 5.0})
    write_files(repository, plan)
    check_served(repository, Ensemble("ensemble", (Member("a", 2), Member("b", 1, 3.0), Member("c", 1, 5.0)), "probabilities"))


def test_a_pin_that_was_changed_by_hand_counts(repository: Path) -> None:
    write_files(repository, repository_plan(repository, [member("a", 9)], replace=True))

    def pin(config: schema.ModelConfig) -> None:
        config.ensemble_scheduling.step[0].model_version = 1

    edit(repository / "ensemble/config.pbtxt", pin)
    write_files(repository, repository_plan(repository, [member("b", 8)], replace=True))
    check_served(repository, Ensemble("ensemble", (Member("a", 1), Member("b", 2, 3.0), Member("c")), "logits"))


def test_outputs_that_were_taken_out_stay_out(repository: Path) -> None:
    def take_out(config: schema.ModelConfig) -> None:
        del config.output[1:]
        for output in ("member_probabilities", "entropy", "mutual_information"):
            del config.ensemble_scheduling.step[-1].output_map[output]

    edit(repository / "ensemble/config.pbtxt", take_out)
    plan = repository_plan(repository, [member("d", 4)], replace=True)
    write_files(repository, plan)
    assert dict(config_of(repository).ensemble_scheduling.step[-1].output_map) == {"probabilities": "probabilities"}
    assert [tensor.name for tensor in config_of(repository).output] == ["probabilities"]
    check_served(repository, Ensemble("ensemble", (Member("a"), Member("b", 1, 3.0), Member("c"), Member("d")), "logits"))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdf"), st.integers(1, 2**40), st.one_of(st.integers(1, 9), st.floats(0.01, 100))),
        min_size=1,
        max_size=5,
        unique_by=lambda vote: vote[:2],
    ),
    st.sampled_from(["probabilities", "logits"]),
)
def test_what_configurations_say_is_read_back(votes: list[tuple[str, int, float]], average: str) -> None:
    ensemble = Ensemble("e", tuple(Member(*vote) for vote in votes), average)
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


def _leave_a_vote_out(config: schema.ModelConfig) -> None:
    del config.ensemble_scheduling.step[0]


def _average_elsewhere(config: schema.ModelConfig) -> None:
    config.ensemble_scheduling.step[3].model_name = "mine"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_rewire, "wired"),
        (_follow_the_newest, "'a' | -1"),
        (_add_a_step, "wired"),
        (_leave_a_vote_out, "[1.0, 3.0, 1.0]"),
        (
            _average_elsewhere,
            "'mine' | average",
        ),
    ],
)
def test_an_ensemble_of_somebody_else_is_refused(repository: Path, change: Callable[[schema.ModelConfig], None], text: str) -> None:
    edit(repository / "ensemble/config.pbtxt", change)
    with raises(EnsembleError, f"'ensemble' | {text} | `defensemble ensemble apply FILE`"):
        repository_plan(repository, [member("d")], replace=True)
    assert repository_plan(repository, [member("d")], ensemble="other"), "another ensemble is no matter of this one"


@pytest.mark.parametrize("weights", ["many", "{}", "[1, 2]", "[1, 2, true]", '[1, 2, "3"]', "[1, 2, 0]", "[1, 2, NaN]"])
def test_weights_that_cannot_be_read_are_refused(repository: Path, weights: str) -> None:
    (average,) = repository.glob("average_*/config.pbtxt")

    def break_weights(config: schema.ModelConfig) -> None:
        config.parameters["weights"].string_value = weights

    edit(average, break_weights)
    with raises(EnsembleError, "weights | `defensemble ensemble apply FILE`"):
        repository_plan(repository, [member("d")], replace=True)


def test_a_member_that_votes_twice_is_not_replaced_by_guess(repository: Path) -> None:
    twice = Ensemble("ensemble", (Member("a", 1), Member("a", 2), Member("b")))
    assert twice.extended({"b": 2, "c": 1}, {}).members == (Member("a", 1), Member("a", 2), Member("b", 2), Member("c"))
    for versions, weights in (({"a": 3}, {}), ({"b": 2}, {"a": 2.0})):
        with pytest.raises(EnsembleError, match="several versions"):
            twice.extended(versions, weights)


def test_members_that_are_there_must_fit_the_new_ones(repository: Path) -> None:
    with raises(EnsembleError, "'a' | [[1, 4, 4], [3]] | 'd' | [[1, 2, 8], [3]]"):
        repository_plan(repository, [member("d", input_shape=(1, 2, 8))], replace=True)
    with raises(EnsembleError, "class names | /a/labels.txt | 'd' | --ensemble"):
        repository_plan(repository, [member("d", class_names=("x", "y", "z"))], replace=True)


def test_a_member_that_is_gone_is_named_before_the_slow_work(repository: Path) -> None:
    (repository / "b").rename(repository.parent / "b")
    with raises(EnsembleError, "'ensemble' | b | /repository"):
        check_request(repository, ["d"], "ensemble", average=None, weights={}, max_batch_size=None, replace=True)


def test_a_batch_size_that_a_configuration_does_not_take_up_is_refused(repository: Path) -> None:
    edit(repository / "a/config.pbtxt", lambda config: setattr(config, "max_batch_size", 16))
    with raises(RepositoryError, "/a/config.pbtxt | 16 | --max-batch-size | 32"):
        repository_plan(repository, [member("a", 9)], ensemble=None, max_batch_size=32, replace=True)
    assert repository_plan(repository, [member("a", 9)], ensemble=None, max_batch_size=16, replace=True)
    with raises(RepositoryError, "/ensemble/config.pbtxt | 32 | --max-batch-size | 128"):
        repository_plan(repository, [member("d")], max_batch_size=128, replace=True)
    for there in (0, 5000):
        edit(repository / "a/config.pbtxt", lambda config, there=there: setattr(config, "max_batch_size", there))  # type: ignore[misc]
        with raises(RepositoryError, f"max_batch_size | /a/config.pbtxt | 1 to 4096 | {there}"):
            repository_plan(repository, [member("a", 9)], ensemble=None, replace=True)


def test_members_are_verified_at_what_their_configurations_will_say(repository: Path) -> None:
    def batches(*names: str, ensemble: str | None = "ensemble", asked: int | None = None) -> dict[str, int]:
        return check_request(repository, names, ensemble, average=None, weights={}, max_batch_size=asked, replace=True)

    assert batches("a", "new") == {"a": 32, "new": 64}
    assert batches("new", ensemble=None, asked=7) == {"new": 7}
    edit(repository / "a/config.pbtxt", lambda config: setattr(config, "max_batch_size", 5))
    edit(repository / "ensemble/config.pbtxt", lambda config: setattr(config, "max_batch_size", 128))
    assert batches("a", "new") == {"a": 5, "new": 128}, "a new member does not make the ensemble take less"
    plan = repository_plan(repository, [member("a", 9), member("new")], replace=True)
    assert config_from_pbtxt(plan["ensemble/config.pbtxt"].decode(), "").max_batch_size == 5, "at most what each member takes"


def test_a_version_that_triton_does_not_count_to_is_named(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    (repository / "alpha" / str(2**63 - 1)).mkdir()
    with pytest.raises(RepositoryError, match="/alpha/9223372036854775807"):
        repository_plan(repository, [tiny.member("alpha", 3)], replace=True)
