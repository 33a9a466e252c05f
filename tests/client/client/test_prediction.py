from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from defensemble import InputError, OutputNotRequestedError, Prediction
from defensemble._client.prediction import entropy, join_outputs, outputs_from_response, softmax

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
    assert prediction.confidence.tolist() == pytest.approx([0.7, 0.5])
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


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    """Of 1 to 6 images, 1 to 5 classes with ties, and 1 to 3 members; some outputs are missing."""
    count, classes, members = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    shapes = {"probabilities": (count, classes), "member_probabilities": (count, members, classes), "mutual_information": (count, 1)}
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    asked = ["probabilities", *draw(st.sets(st.sampled_from(["member_probabilities", "mutual_information"])))]
    received = outputs_from_response({name: (rng.integers(0, 4, shapes[name]) / 4).astype(np.float32) for name in asked})
    names = tuple(f"class {index}" for index in range(classes))
    return Prediction("ensemble", names, received, "3", "id-1", 0.25, "grpc://host:8001")


def assert_rows(got: Prediction, whole: Prediction, rows: Any) -> None:
    assert set(got.received) == set(whole.received)
    for name, value in whole.received.items():
        np.testing.assert_array_equal(got.received[name], value[rows])
        assert not got.received[name].flags.writeable
    assert got.labels == np.array(whole.labels)[rows].tolist()
    assert (got.model, got.class_names, got.model_version, got.request_id, got.latency_s, got.url) == (
        ("ensemble", whole.class_names, "3", "id-1", 0.25, "grpc://host:8001")
    )


@settings(max_examples=30)
@given(predictions(), st.data())
def test_a_prediction_is_indexed_as_numpy_indexes(prediction: Prediction, data: st.DataObject) -> None:
    count = len(prediction)
    position = data.draw(st.integers(-count, count - 1))
    for index in (position, np.int64(position)):
        assert_rows(prediction[index], prediction, [position])
    rows = data.draw(st.slices(count))
    assert_rows(prediction[rows], prediction, rows)
    positions = np.array(data.draw(st.lists(st.integers(-count, count - 1), max_size=8)), np.intp)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), np.bool_)
    for array in (positions, mask):
        assert_rows(prediction[array], prediction, array)
        assert_rows(prediction[array.tolist()], prediction, array)
    assert len(list(prediction)) == count
    for number, one in enumerate(prediction):
        assert len(one) == 1
        assert_rows(one, prediction, [number])


@pytest.mark.parametrize("index", [2, -3, np.int64(2), [2], [True]])
def test_an_image_that_is_not_there_is_an_index_error(index: Any) -> None:
    with pytest.raises(IndexError, match=r"\d"):
        prediction_of(probabilities=np.ones((2, 3), np.float32))[index]


@pytest.mark.parametrize("index", ["labels", (0, 1), 1.0, None, [[0]]])
def test_other_indices_are_type_errors(index: Any) -> None:
    with pytest.raises(TypeError, match=type(index).__name__):
        prediction_of(probabilities=np.ones((2, 3), np.float32))[index]


def test_a_slice_shares_the_arrays() -> None:
    prediction = prediction_of(probabilities=np.ones((4, 3), np.float32))
    assert np.shares_memory(prediction[1:3].probabilities, prediction.probabilities)
    assert np.shares_memory(prediction[1].probabilities, prediction.probabilities)


@settings(max_examples=30)
@given(predictions(), st.data())
def test_the_parts_of_a_prediction_join_to_the_whole(prediction: Prediction, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(prediction)))) - {len(prediction)})
    parts = [prediction[low:high].received for low, high in zip([0, *cuts], [*cuts, len(prediction)], strict=True)]
    joined = join_outputs(parts)
    assert set(joined) == set(prediction.received)
    for name, value in joined.items():
        np.testing.assert_array_equal(value, prediction.received[name])
        assert value.dtype == np.float32
        assert not value.flags.writeable


@settings(max_examples=30)
@given(predictions(), st.integers(1, 8))
def test_top_is_in_the_order_of_the_probabilities(prediction: Prediction, count: int) -> None:
    for row, classes in zip(prediction.probabilities.tolist(), prediction.top(count), strict=True):
        expected = sorted(zip(prediction.class_names, row, strict=True), key=lambda entry: -entry[1])[:count]
        assert classes == expected
    assert [classes[0][0] for classes in prediction.top(1)] == prediction.labels


@settings(max_examples=30)
@given(predictions(), st.integers(1, 8))
def test_to_dict_and_to_numpy_hold_everything(prediction: Prediction, count: int) -> None:
    values = json.loads(json.dumps(prediction.to_dict(count), allow_nan=False))
    images = values.pop("images")
    assert values == {
        "model": "ensemble",
        "model_version": "3",
        "request_id": "id-1",
        "latency_s": 0.25,
        "url": "grpc://host:8001",
    }
    arrays = prediction.to_numpy()
    assert set(arrays) == {*prediction.received, "labels", "indices", "entropy"}
    for number, (image, classes) in enumerate(zip(images, prediction.top(count), strict=True)):
        top = image.pop("top")
        assert [(entry["label"], entry["probability"]) for entry in top] == classes
        assert [prediction.class_names[entry["index"]] for entry in top] == [label for label, _ in classes]
        assert image.pop("label") == arrays["labels"][number] == classes[0][0]
        assert image.pop("index") == arrays["indices"][number]
        assert image.pop("probability") == arrays["probabilities"][number].max()
        assert image == {name: arrays[name][number].tolist() for name in {"entropy", *prediction.received} - {"probabilities"}}


def test_a_prediction_without_probabilities_holds_what_was_received() -> None:
    only = prediction_of(entropy=np.array([[0.5], [0.25]], np.float32), mutual_information=np.zeros((2, 1), np.float32))
    assert only.to_dict()["images"] == [{"entropy": 0.5, "mutual_information": 0.0}, {"entropy": 0.25, "mutual_information": 0.0}]
    assert set(only.to_numpy()) == {"entropy", "mutual_information"}
    assert only[1].entropy.tolist() == [0.25]
    with pytest.raises(OutputNotRequestedError):
        only.top()


@pytest.mark.parametrize("count", [0, -1, 1.5, None])
def test_top_takes_a_positive_integer(count: Any) -> None:
    prediction = prediction_of(probabilities=np.ones((2, 3), np.float32))
    for call in (prediction.top, prediction.to_dict):
        with pytest.raises(InputError, match=str(count)):
            call(count)


def test_an_empty_slice_is_a_prediction_of_no_image() -> None:
    empty = prediction_of(probabilities=np.ones((2, 3), np.float32))[2:]
    assert len(empty) == len(empty.labels) == len(empty.top()) == len(list(empty)) == 0
    assert "0 images" in repr(empty)
    assert empty.to_dict()["images"] == []


def test_the_repr_has_version_server_and_latency() -> None:
    one = Prediction("ensemble", ("a", "b"), {"probabilities": np.array([[0.25, 0.75]], np.float32)}, "3", "id", 0.0123, "grpc://host:1")
    assert repr(one) == "<Prediction of 1 image by 'ensemble' version 3: b 0.750; outputs: probabilities (1, 2); 12.3 ms, grpc://host:1>"
