"""The numpy average compared with scipy, and the scale of a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, strategies as st

from defensemble_repository.averaging import difference_scale, largest_difference, reference_outputs
from defensemble_repository.ensemble import normalised_weights


@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4),
    average=st.sampled_from(["probabilities", "logits"]),
    spread=st.sampled_from([0.1, 5.0, 300.0]),
)
def test_reference_outputs_match_scipy(seed: int, weights: list[float], average: str, spread: float) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, (len(weights), 3, 5)).astype(np.float32)
    outputs = reference_outputs([*logits], average, weights)
    share = np.array(weights) / math.fsum(weights)
    members = scipy.special.softmax(logits.astype(np.float64), axis=2)
    mixture = np.einsum("m,mnk->nk", share, members)
    expected = mixture if average == "probabilities" else scipy.special.softmax(np.einsum("m,mnk->nk", share, logits), axis=1)
    information = scipy.stats.entropy(mixture, axis=1) - share @ scipy.stats.entropy(members, axis=2)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-9)
    np.testing.assert_allclose(outputs["member_probabilities"], members.transpose(1, 0, 2), atol=1e-12)
    np.testing.assert_allclose(outputs["entropy"][:, 0], scipy.stats.entropy(expected, axis=1), atol=1e-9)
    np.testing.assert_allclose(outputs["mutual_information"][:, 0], information, atol=1e-9)


def test_normalised_weights_do_not_overflow() -> None:
    assert normalised_weights([1e308, 1e308]) == (0.5, 0.5)
    assert math.fsum(normalised_weights([0.1] * 7)) == pytest.approx(1, abs=1e-15)


def test_a_difference_is_relative_to_large_expected_values() -> None:
    assert difference_scale(np.array([[0.25, -0.5]])) == 1.0
    assert largest_difference(np.array([[0.25, 0.0]]), np.array([[0.25, -0.5]])) == 0.5
    assert largest_difference(np.array([[-8.0, 3.0]]), np.array([[-8.0, 1.0]])) == 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_and_other_shapes_differ_infinitely(value: float) -> None:
    broken = np.array([[value, 1.0]])
    assert largest_difference(broken, broken) == math.inf
    assert largest_difference(np.ones((1, 2)), broken) == math.inf
    assert largest_difference(np.ones((1, 3)), np.ones((1, 2))) == math.inf
