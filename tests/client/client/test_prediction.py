from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from defensemble import OutputNotRequestedError, Prediction
from defensemble._client.prediction import entropy, outputs_from_response, softmax

Array = np.ndarray[Any, Any]
LOGITS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7), elements=st.floats(-100, 100, width=32))
COUNTS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7), elements=st.integers(0, 50))


@given(LOGITS)
def test_softmax_equals_scipy_and_sums_to_one(logits: Array) -> None:
    got = softmax(logits)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, scipy.special.softmax(logits.astype(np.float64), axis=1), atol=1e-7)
    np.testing.assert_allclose(got.astype(np.float64).sum(axis=1), 1, atol=1e-6)


@given(LOGITS, st.floats(-1000, 1000, width=32))
def test_softmax_is_invariant_to_a_constant(logits: Array, constant: float) -> None:
    np.testing.assert_allclose(softmax(logits + np.float32(constant)), softmax(logits), atol=2e-4)


@given(COUNTS)
def test_entropy_equals_scipy_and_is_within_its_bounds(counts: Array) -> None:
    probabilities = ((counts + (counts.sum(axis=1, keepdims=True) == 0)) / 1.0).astype(np.float32)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    got = entropy(probabilities)
    np.testing.assert_allclose(got, scipy.stats.entropy(probabilities.astype(np.float64), axis=1), atol=1e-6)
    assert (got >= 0).all()
    assert (got <= np.log(probabilities.shape[1]) + 1e-6).all()


def test_entropy_of_certainty_is_zero_without_a_warning() -> None:
    assert entropy(np.array([[1, 0, 0]], np.float32)).tolist() == [0.0]


def prediction_of(**received: Array) -> Prediction:
    return Prediction("ensemble", ("a", "b", "c"), outputs_from_response(received))


def test_a_prediction_has_labels_indices_and_entropy() -> None:
    prediction = prediction_of(probabilities=np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], np.float32))
    assert prediction.labels == ["c", "a"]
    assert prediction.indices.tolist() == [2, 0]
    assert len(prediction) == 2
    np.testing.assert_allclose(prediction.entropy, [0.8018186, 1.0397208], atol=1e-6)


def test_a_requested_entropy_is_the_server_s() -> None:
    prediction = prediction_of(probabilities=np.array([[0.1, 0.2, 0.7]], np.float32), entropy=np.array([[0.25]], np.float32))
    assert prediction.entropy.shape == (1,)
    assert prediction.entropy.tolist() == [0.25]


def test_an_output_that_was_not_requested_raises() -> None:
    prediction = prediction_of(probabilities=np.ones((1, 3), np.float32) / 3)
    for name in ("member_probabilities", "mutual_information"):
        with pytest.raises(OutputNotRequestedError, match=rf"outputs=\('probabilities', '{name}'\)"):
            getattr(prediction, name)
    only = prediction_of(mutual_information=np.zeros((1, 1), np.float32))
    for name in ("probabilities", "entropy", "labels", "indices"):
        with pytest.raises(OutputNotRequestedError, match="mutual_information"):
            getattr(only, name)
    assert "mutual_information (1,)" in repr(only)


def test_a_prediction_is_read_only_pickles_and_has_a_repr() -> None:
    prediction = prediction_of(logits=np.array([[0, 1, 2]] * 5, np.float32))
    with pytest.raises(ValueError, match="read-only"):
        prediction.probabilities[0, 0] = 1
    copy = pickle.loads(pickle.dumps(prediction))
    np.testing.assert_array_equal(copy.probabilities, prediction.probabilities)
    assert copy.labels == ["c"] * 5
    assert repr(prediction) == (
        "<Prediction of 5 images by 'ensemble': c 0.665, c 0.665, c 0.665, c 0.665, ...; outputs: probabilities (5, 3)>"
    )
