"""The average of an ensemble: its parameters in configurations, its reference outputs in numpy, and their tolerances."""

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
# Largest difference, as `largest_difference` measures it, of an average in float32 from numpy's in float64, for the same logits.
TOLERANCE = 1e-5
# The same where members compute with fewer bits or on a GPU: rounding then depends on the batch size and on which nodes the runtime fuses.
ROUNDED_TOLERANCE = 1e-2
# Largest difference of the sum of probabilities from 1.
SUM_TOLERANCE = 1e-3


def reference_outputs(logits: Sequence[Array], average: str, weights: Sequence[float]) -> dict[str, Float64]:
    """Compute the outputs of an ensemble in float64, directly from their definitions.

    Args:
        logits: One array of shape (N, K) for each of the M members.
        average: `"probabilities"` or `"logits"`.
        weights: One weight above 0 for each member. They need not sum to 1.

    Returns:
        `probabilities` (N, K), `member_probabilities` (N, M, K), `entropy` (N, 1) and `mutual_information` (N, 1), both in nats.

    Example:
        >>> outputs = reference_outputs([np.array([[0.0, 0.0]]), np.array([[0.0, 0.0]])], "probabilities", [1, 1])
        >>> outputs["probabilities"]
        array([[0.5, 0.5]])
    """
    stacked = np.stack([array.astype(np.float64) for array in logits], axis=1)  # (N, M, K)
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
    """Return -sum p log p over the last axis, in nats. 0 log 0 is 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    nats: Float64 = -(probabilities * logarithms).sum(axis=-1)
    return nats


def difference_scale(expected: Array) -> float:
    """Return the unit of a difference from `expected`: max(1, largest absolute value)."""
    return max(1.0, float(np.abs(expected).max(initial=0.0)))


def largest_difference(actual: Array, expected: Array) -> float:
    """Return the largest absolute difference of two arrays, divided by `difference_scale`.

    It is infinite if the shapes differ or a value is not finite.
    """
    if actual.shape != expected.shape or not np.isfinite(actual).all() or not np.isfinite(expected).all():
        return math.inf
    return float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0)) / difference_scale(expected)


def members_of(ensemble: schema.ModelConfig) -> list[tuple[str, int]]:
    """Return (model, version) of each step that reads an input of an ensemble, in step order."""
    return [(step.model_name, step.model_version) for step in _member_steps(ensemble)]


def _member_steps(ensemble: schema.ModelConfig) -> list[schema.ModelEnsembling.Step]:
    inputs = {tensor.name for tensor in ensemble.input}
    return [step for step in ensemble.ensemble_scheduling.step if inputs & set(step.input_map.values())]


def read_averaging(ensemble: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]) -> tuple[str, list[float]] | None:
    """Return how an ensemble computes its `probabilities`.

    Args:
        ensemble: The configuration of the ensemble.
        configs: The configurations of the models of its steps, by name.

    Returns:
        The average and the weights, in the order of `members_of`, or None if the wiring is unknown or a parameter is missing.

    Raises:
        EnsembleError: The parameters of the averaging model are not a known average, or not one positive number for each member.
    """
    for step in ensemble.ensemble_scheduling.step:
        config = configs.get(step.model_name)
        if "probabilities" not in step.output_map.values() or config is None:
            continue
        # Steps can be in any order. The index of a weight is the number in the name of the averaging model's input.
        averaged = [step.input_map.get(f"logits_{index}", "") for index in range(len(step.input_map))]
        logits = [member.output_map.get("logits", "") for member in _member_steps(ensemble)]
        if "" in logits or sorted(logits) != sorted(averaged):
            return None  # It averages other tensors than the logits of the members: this project did not wire it.
        if parameter(config, "average") is not None and parameter(config, "weights") is not None:
            average, weights = _average_and_weights(step.model_name, config, len(logits))
            return average, [weights[averaged.index(tensor)] for tensor in logits]
    return None


def is_fused(config: schema.ModelConfig) -> bool:
    """Return whether a model is a fused graph: one graph that gives `probabilities`, with parameters that list its members."""
    inputs = [(tensor.name, tensor.data_type) for tensor in config.input]
    has_output = any(tensor.name == "probabilities" for tensor in config.output)
    has_parameters = all(parameter(config, key) is not None for key in ("average", "weights", "members"))
    return not is_ensemble(config) and inputs == [("images", schema.TYPE_FP32)] and has_output and has_parameters


def read_fused_averaging(name: str, config: schema.ModelConfig) -> tuple[str, list[float], list[tuple[str, int]]]:
    """Return how a fused graph computes its `probabilities`.

    Args:
        name: The name of the model, for error messages.
        config: Its configuration, for which `is_fused` is true.

    Returns:
        The average, the weights, and (model, version) of each member in the same order.

    Raises:
        EnsembleError: The parameters are not a known average, a list of `NAME@VERSION`, or one positive number for each member.
    """
    text = parameter(config, "members") or ""
    try:
        members = members_from_text(text)
    except ValueError as error:
        raise EnsembleError(f"parameter members of '{name}' is {text[:80]!r}; expected a JSON list of \"NAME@VERSION\"") from error
    return *_average_and_weights(name, config, len(members)), members


def serves_fused_members(name: str, config: schema.ModelConfig, configs: Mapping[str, schema.ModelConfig]) -> bool:
    """Return whether the served members are the networks in a fused graph, by the digests in its parameter `member_digests`.

    Without that parameter, models with the names of the members are assumed to be the same networks.

    Args:
        name: The name of the fused model, for error messages.
        config: Its configuration.
        configs: The configurations of the served models, by name.

    Raises:
        EnsembleError: The parameter is not a JSON list with one string for each member.
    """
    members, text = read_fused_averaging(name, config)[2], parameter(config, "member_digests")
    if text is None:
        return True
    try:
        digests = record_from_values(parse_json(text), list[str])
    except ValueError:
        digests = []
    if len(digests) != len(members):
        raise EnsembleError(f"parameter member_digests of '{name}' is {text[:80]!r}; expected a JSON list of {len(members)} strings")
    return [parameter(configs.get(model), f"sha256.{version}") for model, version in members] == digests


def _average_and_weights(name: str, config: schema.ModelConfig, member_count: int) -> tuple[str, list[float]]:
    average, text = parameter(config, "average") or "", parameter(config, "weights") or ""
    if average not in AVERAGES:
        raise EnsembleError(f"parameter average of '{name}' is {average[:80]!r}; expected one of {', '.join(AVERAGES)}")
    try:
        weights = weights_from_text(text)
    except ValueError as error:
        raise EnsembleError(f"parameter weights of '{name}' is {text[:80]!r}; expected a JSON list of numbers") from error
    if len(weights) != member_count or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise EnsembleError(f"parameter weights of '{name}' is {text[:80]}; expected {member_count} finite numbers above 0")
    return average, weights
