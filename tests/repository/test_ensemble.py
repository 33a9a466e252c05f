"""Names, weights and averages: what is refused, and that a digest names what is computed."""

from __future__ import annotations

import json
import math
import pickle

import pytest
from hypothesis import given, strategies as st

from defensemble_export import EnsembleError, average_onnx
from defensemble_repository.configs import averaging_config
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.names import check_name
from tests.support.facts import raises

VOTES = (Member("a"), Member("b", 2, 3.0))


@pytest.mark.parametrize("name", ["", ".hidden", "-flag", "a/b", "../up", "a b", "ä", "x" * 101, "a\n", "average_x", "uncertainty_1"])
def test_names_that_triton_or_a_file_system_would_misread(name: str) -> None:
    with pytest.raises(EnsembleError, match="name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "keep0.3", "keep0.3-other", "A_1", "x" * 100])
def test_names_that_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_finite_and_above_zero(weight: float) -> None:
    with pytest.raises(EnsembleError, match="above 0"):
        Member("a", 1, weight)


def test_weights_that_overflow_a_sum_are_shares_all_the_same_and_a_lost_one_is_refused() -> None:
    assert Ensemble("e", (Member("a", 1, 1e308), Member("b", 1, 1e308))).weights == (0.5, 0.5)
    with raises(EnsembleError, "1e-07"):
        Ensemble("e", (Member("a", 1, 1e-300), Member("b")))


def test_other_refusals_say_what_was_got() -> None:
    with pytest.raises(EnsembleError, match="at least one"):
        Ensemble("e", ())
    with raises(EnsembleError, "probabilities, logits | 'median'"):
        Ensemble("e", VOTES, "median")
    with raises(EnsembleError, "a@1 | twice"):
        Ensemble("e", (Member("a"), Member("a")))
    with pytest.raises(EnsembleError, match="same name"):
        Ensemble("a", VOTES)
    with raises(EnsembleError, "1 or more | 0"):
        Member("a", 0)


@given(st.lists(st.floats(1e-2, 1e3), min_size=1, max_size=9))
def test_weights_sum_to_one_and_keep_their_ratios(weights: list[float]) -> None:
    ensemble = Ensemble("e", tuple(Member(f"m{index}", 1, weight) for index, weight in enumerate(weights)))
    assert math.isclose(sum(ensemble.weights), 1)
    assert math.isclose(ensemble.weights[0] * weights[-1], ensemble.weights[-1] * weights[0], rel_tol=1e-9)


def test_digests_differ_where_the_computation_does() -> None:
    same = Ensemble("one", VOTES).digest(10, 64)
    assert Ensemble("another", VOTES).digest(10, 64) == same
    others = [
        Ensemble("one", VOTES, "logits").digest(10, 64),
        Ensemble("one", VOTES[::-1]).digest(10, 64),
        Ensemble("one", (Member("a"), Member("b", 3, 3.0))).digest(10, 64),
        Ensemble("one", (Member("a"), Member("b", 2, 3.5))).digest(10, 64),
        Ensemble("one", VOTES).digest(11, 64),
        Ensemble("one", VOTES).digest(10, 65),
    ]
    assert len({same, *others}) == len(others) + 1


@pytest.mark.parametrize("weights", [(2, 6.0), (1, 3), (0.1, 0.3), (1e-3, 3e-3)])
def test_digests_are_equal_where_the_computation_is_and_weights_stay_as_given(weights: tuple[float, float]) -> None:
    ensemble = Ensemble("e", (Member("a", 1, weights[0]), Member("b", 2, weights[1])))
    assert ensemble.digest(10, 64) == Ensemble("e", VOTES).digest(10, 64)
    assert tuple(vote.weight for vote in ensemble.members) == weights
    config = averaging_config(ensemble, 10, 64, digest="0")
    assert json.loads(config.parameters["weights"].string_value) == list(weights)
    assert average_onnx(ensemble, 10) == average_onnx(Ensemble("e", VOTES), 10)


def test_errors_pickle() -> None:
    error = EnsembleError("text")
    assert pickle.loads(pickle.dumps(error)).args == error.args
