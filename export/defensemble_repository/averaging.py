"""What an average is: its parameters in configurations, its outputs by numpy, and how far an answer may be from these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ensemble import AVERAGES, normalised_weights
from .errors import EnsembleError
from .pbtxt import schema
from .reader import is_ensemble, members_from_text, parameter, weights_from_text
from .records import parse_json, record_from_values

Array = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]
# How far an average in float32 may be from numpy's in float64, of the same logits: see `largest_difference`.
TOLERANCE = 1e-5
# Where members compute in fewer bits, or on a GPU: rounding depends on the size of the batch, and on which nodes a runtime runs as one.
ROUNDED_TOLERANCE = 1e-2
# How far the sum of probabilities may be from 1.
SUM_TOLERANCE = 1e-3


def reference_outputs(logits: Sequence[Array], average: str, weights: Sequence[float]) -> dict[str, Float64]:
    """Compute all outputs of an ensemble by their definitions.

    Args:
        logits: of each member, (N, K).
        average: `"probabilities"` or `"logits"`.
        weights: one above 0 for each member.

    Returns:
        `probabilities` (N, K), `member_probabilities` (N, M, K), `entropy` and `mutual_information` (N, 1), in nats.
    """
    stacked = np.stack([one.astype(np.float64) for one in logits], axis=1)  # (N, M, K)
    shares = np.array(normalised_weights(weights)).reshape(-1, 1)
    members = softmax(stacked)
    mixture = (shares * members).sum(axis=1)
    probabilities = mixture if average == "probabilities" else softmax((shares * stacked).sum(axis=1))
    expected_entropy = (shares[:, 0] * entropy(members)).sum(axis=1)
    return {
        "probabilities": probabilities,
        "member_probabilities": members,
        "entropy": entropy(probabilities)[:, np.newaxis],
        "mutual_information": (entropy(mixture) - expected_entropy)[:, np.newaxis],
    }


def softmax(logits: Array) -> Float64:
    """Return the softmax over the last axis."""
    powers: Float64 = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: Float64 = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def entropy(probabilities: Float64) -> Float64:
    """Return -sum p log p over the last axis, in nats; 0 log 0 is 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    nats: Float64 = -(probabilities * logarithms).sum(axis=-1)
    return nats


def difference_scale(expected: Array) -> float:
    """Return the unit of a difference from `expected`: max(1, largest absolute value)."""
    return max(1.0, float(np.abs(expected).max(initial=0.0)))


def largest_difference(got: Array, expected: Array) -> float:
    """Return the largest difference of a value in units of `difference_scale`; infinite where shapes differ or a value is not finite."""
    if got.shape != expected.shape or not np.isfinite(got).all() or not np.isfinite(expected).all():
        return math.inf
    return float(np.abs(got.astype(np.float64) - expected).max(initial=0.0)) / difference_scale(expected)


def members_of(ensemble: schema.ModelConfig) -> list[tuple[str, int]]:
    """Of an ensemble: (model, version) of the steps that read an input of the ensemble, in order."""
    return [(step.model_name, step.model_version) for step in _voting_steps(ensemble)]


def _voting_steps(ensemble: schema.ModelConfig) -> list[schema.ModelEnsembling.Step]:
    inputs = {tensor.name for tensor in ensemble.input}
    return [step for step in ensemble.ensemble_scheduling.step if inputs & set(step.input_map.values())]


def read_averaging(ensemble: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]) -> tuple[str, list[float]] | None:
    """What an ensemble's `probabilities` are: (average, weights in the order of its votes); None where it is not known.

    Raises:
        EnsembleError: what a configuration says is no average, or not one positive number for each vote.
    """
    for step in ensemble.ensemble_scheduling.step:
        config = configs.get(step.model_name)
        if "probabilities" not in step.output_map.values() or config is None:
            continue
        # Steps can stand in any order: a weight belongs to the input of its number.
        averaged = [step.input_map.get(f"logits_{index}", "") for index in range(len(step.input_map))]
        given = [one.output_map.get("logits", "") for one in _voting_steps(ensemble)]
        if "" in given or sorted(given) != sorted(averaged):
            return None  # it averages others than those that read the input: somebody else's wiring
        if parameter(config, "average") is not None and parameter(config, "weights") is not None:
            average, weights = _average_and_weights(step.model_name, config, len(given))
            return average, [weights[averaged.index(tensor)] for tensor in given]
    return None


def is_fused(config: schema.ModelConfig) -> bool:
    """Whether a model gives an ensemble's `probabilities` out of one graph, and its parameters say whose votes they average."""
    inputs = [(tensor.name, tensor.data_type) for tensor in config.input]
    gives = any(tensor.name == "probabilities" for tensor in config.output)
    stated = all(parameter(config, key) is not None for key in ("average", "weights", "members"))
    return not is_ensemble(config) and inputs == [("images", schema.TYPE_FP32)] and gives and stated


def read_fused_averaging(name: str, config: schema.ModelConfig) -> tuple[str, list[float], list[tuple[str, int]]]:
    """What a fused graph's `probabilities` are: (average, weights, and in their order the votes as model and version).

    Raises:
        EnsembleError: what its parameters say is no average, no list of `NAME@VERSION`, or not one positive number for each vote.
    """
    text = parameter(config, "members") or ""
    try:
        votes = members_from_text(text)
    except ValueError as error:
        raise EnsembleError(f"parameter members of '{name}' is no JSON list of \"NAME@VERSION\", got {text[:80]!r}") from error
    return *_average_and_weights(name, config, len(votes)), votes


def serves_fused_members(name: str, config: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]) -> bool:
    """Whether the files of a fused graph's members, as its parameter `member_digests` has them, are those served under their names.

    Without that parameter their names are believed.

    Raises:
        EnsembleError: the parameter is no JSON list with one text for each vote.
    """
    votes, text = read_fused_averaging(name, config)[2], parameter(config, "member_digests")
    if text is None:
        return True
    try:
        digests = record_from_values(parse_json(text), list[str])
    except ValueError:
        digests = []
    if len(digests) != len(votes):
        raise EnsembleError(f"parameter member_digests of '{name}' must be a JSON list of {len(votes)} texts, got {text[:80]!r}")
    return [parameter(configs.get(model), f"sha256.{version}") for model, version in votes] == digests


def _average_and_weights(name: str, config: schema.ModelConfig, votes: int) -> tuple[str, list[float]]:
    average, text = parameter(config, "average") or "", parameter(config, "weights") or ""
    if average not in AVERAGES:
        raise EnsembleError(f"parameter average of '{name}' must be one of {', '.join(AVERAGES)}, got {average[:80]!r}")
    try:
        weights = weights_from_text(text)
    except ValueError as error:
        raise EnsembleError(f"parameter weights of '{name}' is no JSON list of numbers, got {text[:80]!r}") from error
    if len(weights) != votes or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise EnsembleError(f"parameter weights of '{name}' must be {votes} numbers above 0, got {text[:80]}")
    return average, weights
