"""The averaging graph against numpy in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, strategies as st

from defensemble_export import average_onnx
from defensemble_export.graphs.averaging import is_same_graph
from defensemble_repository.ensemble import Ensemble, Member
from tests.support.tiny import Array, softmax


def entropy(distribution: Array) -> Array:
    logarithm = np.log(np.where(distribution > 0, distribution, 1))
    value: Array = -(distribution * logarithm).sum(-1)
    return value


def run(model: bytes, logits: Array) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers = session.run(None, {f"logits_{m}": votes for m, votes in enumerate(logits)})
    return {output.name: answer for output, answer in zip(session.get_outputs(), answers, strict=True)}


@given(
    average=st.sampled_from(["probabilities", "logits"]),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
    batch=st.integers(1, 5),
    classes=st.integers(2, 12),
    scale=st.sampled_from([0.0, 1.0, 30.0, 500.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_formulas(average: str, weights: list[float], batch: int, classes: int, scale: float, seed: int) -> None:
    logits = (np.random.default_rng(seed).normal(size=(len(weights), batch, classes)) * scale).astype(np.float32)
    ensemble = Ensemble("e", tuple(Member(f"m{index}", 1, weight) for index, weight in enumerate(weights)), average)
    share = np.array(weights) / np.sum(weights)
    members = softmax(logits.astype(np.float64))
    mixture = np.tensordot(share, members, 1)
    expected = mixture if average == "probabilities" else softmax(np.tensordot(share, logits.astype(np.float64), 1))

    got = run(average_onnx(ensemble, classes), logits)
    # A logit of 500 has a float32 step of 3e-5, which softmax preserves.
    tolerance = 1e-6 * max(1.0, scale)
    assert {value.dtype for value in got.values()} == {np.dtype(np.float32)}
    assert {name: value.shape for name, value in got.items()} == {
        "probabilities": (batch, classes),
        "member_probabilities": (batch, len(weights), classes),
        "entropy": (batch, 1),
        "mutual_information": (batch, 1),
    }
    assert np.abs(got["probabilities"] - expected).max() <= tolerance
    assert np.abs(got["probabilities"].sum(1) - 1).max() < 1e-5
    assert np.abs(got["member_probabilities"] - members.transpose(1, 0, 2)).max() <= tolerance
    assert np.abs(got["entropy"][:, 0] - entropy(expected)).max() <= 20 * tolerance
    information = entropy(mixture) - np.tensordot(share, entropy(members), 1)
    assert np.abs(got["mutual_information"][:, 0] - information).max() <= 20 * tolerance
    assert got["mutual_information"].min() >= 0
    assert all(np.isfinite(value).all() for value in got.values())


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_logit_of_minus_infinity_is_a_probability_of_0(average: str) -> None:
    logits = np.array([[[0.0, -np.inf, -np.inf]], [[-np.inf, -np.inf, 3.0]]], np.float32)
    if average == "logits":
        logits[:, :, 0] = 0
    got = run(average_onnx(Ensemble("e", (Member("a"), Member("b")), average), 3), logits)
    members = softmax(logits.astype(np.float64))[:, 0]
    expected = members.mean(0) if average == "probabilities" else [1.0, 0, 0]
    np.testing.assert_allclose(got["probabilities"][0], expected, atol=1e-6)
    np.testing.assert_allclose(got["entropy"][0], entropy(np.array(expected)), atol=1e-6)
    np.testing.assert_allclose(got["mutual_information"][0], entropy(members.mean(0)) - entropy(members).mean(), atol=1e-6)


def test_files_have_versions_that_servers_load() -> None:
    model = onnx.load_model_from_string(average_onnx(Ensemble("e", (Member("a"), Member("b"))), 10))
    assert model.ir_version == 10
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


def test_the_same_ensemble_gives_the_same_bytes() -> None:
    ensemble = Ensemble("e", (Member("a"), Member("b", 1, 2.0)))
    assert average_onnx(ensemble, 10) == average_onnx(ensemble, 10)


def test_is_same_graph_ignores_serialisation() -> None:
    first, other = (Ensemble("e", (Member("a", 1, weight), Member("b", 1))) for weight in (1.0, 2.0))
    generated = average_onnx(first, 3)
    model = onnx.load_model_from_string(generated)
    model.producer_version = "of another release"
    assert model.SerializeToString() != generated
    assert is_same_graph(model.SerializeToString(), generated)
    assert is_same_graph(generated, generated)
    assert not is_same_graph(average_onnx(other, 3), generated)
    assert not is_same_graph(average_onnx(first, 4), generated)
    assert not is_same_graph(b"rubbish", generated)
    assert not is_same_graph(None, generated)
