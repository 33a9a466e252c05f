"""Names, weights and averages of ensembles, and digests of the computation."""

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

MEMBERS = (Member("a"), Member("b", 2, 3.0))


@pytest.mark.parametrize("name", ["", ".hidden", "-flag", "a/b", "../up", "a b", "ä", "x" * 101, "a\n", "average_x", "uncertainty_1"])
def test_check_name_rejects_invalid_names(name: str) -> None:
    with pytest.raises(EnsembleError, match="name"):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "keep0.3", "keep0.3-other", "A_1", "x" * 100])
def test_check_name_accepts_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_finite_and_above_zero(weight: float) -> None:
    with pytest.raises(EnsembleError, match="above 0"):
        Member("a", 1, weight)


def test_huge_weights_are_normalised_and_negligible_ones_are_rejected() -> None:
    assert Ensemble("e", (Member("a", 1, 1e308), Member("b", 1, 1e308))).weights == (0.5, 0.5)
    with raises(EnsembleError, "1e-07"):
        Ensemble("e", (Member("a", 1, 1e-300), Member("b")))


def test_errors_of_an_ensemble_state_the_value() -> None:
    with pytest.raises(EnsembleError, match="at least one"):
        Ensemble("e", ())
    with raises(EnsembleError, "probabilities, logits | 'median'"):
        Ensemble("e", MEMBERS, "median")
    with raises(EnsembleError, "a@1 | twice"):
        Ensemble("e", (Member("a"), Member("a")))
    with pytest.raises(EnsembleError, match="same name"):
        Ensemble("a", MEMBERS)
    with raises(EnsembleError, "1 or more | 0"):
        Member("a", 0)


@given(st.lists(st.floats(1e-2, 1e3), min_size=1, max_size=9))
def test_weights_sum_to_one_and_keep_their_ratios(weights: list[float]) -> None:
    ensemble = Ensemble("e", tuple(Member(f"m{index}", 1, weight) for index, weight in enumerate(weights)))
    assert math.isclose(sum(ensemble.weights), 1)
    assert math.isclose(ensemble.weights[0] * weights[-1], ensemble.weights[-1] * weights[0], rel_tol=1e-9)


def test_different_computations_have_different_digests() -> None:
    same = Ensemble("one", MEMBERS).digest(10, 64)
    assert Ensemble("another", MEMBERS).digest(10, 64) == same
    others = [
        Ensemble("one", MEMBERS, "logits").digest(10, 64),
        Ensemble("one", MEMBERS[::-1]).digest(10, 64),
        Ensemble("one", (Member("a"), Member("b", 3, 3.0))).digest(10, 64),
        Ensemble("one", (Member("a"), Member("b", 2, 3.5))).digest(10, 64),
        Ensemble("one", MEMBERS).digest(11, 64),
        Ensemble("one", MEMBERS).digest(10, 65),
    ]
    assert len({same, *others}) == len(others) + 1


@pytest.mark.parametrize("weights", [(2, 6.0), (1, 3), (0.1, 0.3), (1e-3, 3e-3)])
def test_equal_computations_have_equal_digests_and_keep_their_weights(weights: tuple[float, float]) -> None:
    ensemble = Ensemble("e", (Member("a", 1, weights[0]), Member("b", 2, weights[1])))
    assert ensemble.digest(10, 64) == Ensemble("e", MEMBERS).digest(10, 64)
    assert tuple(member.weight for member in ensemble.members) == weights
    config = averaging_config(ensemble, 10, 64, digest="0")
    assert json.loads(config.parameters["weights"].string_value) == list(weights)
    assert average_onnx(ensemble, 10) == average_onnx(Ensemble("e", MEMBERS), 10)


def test_errors_pickle() -> None:
    error = EnsembleError("text")
    assert pickle.loads(pickle.dumps(error)).args == error.args
