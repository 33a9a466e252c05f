"""Verification of averages on a server: comparison with numpy on one fixed image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.averaging import ROUNDED_TOLERANCE, TOLERANCE, difference_scale, largest_difference, reference_outputs

from .._exceptions import ServerFailedError
from .._transport.error_mapping import call_context, service_error
from .server_models import InferCall, ModelServer

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AveragingSpec:
    """What is averaged, and the weights, normalised to a sum of 1."""

    average: str
    weights: Sequence[float]


def fixed_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """Return one image (1, C, H, W) in [0, 1), always the same; a dynamic size (-1) counts as 1."""
    return np.random.default_rng(0).random((1, *(max(1, size) for size in shape)), np.float32)


def fixed_logits(members: int, num_classes: int) -> list[Array]:
    """Return different logits for each member, (1, K) each, always the same."""
    return [*np.random.default_rng(0).normal(0, 3, (members, 1, num_classes)).astype(np.float32).astype(np.float64)]


def member_calls(members: Sequence[tuple[str, int]], image: NDArray[np.float32]) -> list[InferCall]:
    """Return the calls that run members on an image."""
    return [InferCall(model, {"images": image}, ["logits"], version) for model, version in members]


def member_logits(server: ModelServer, members: Sequence[tuple[str, int]], image: NDArray[np.float32]) -> dict[tuple[str, int], Array]:
    """Return the logits of each member for an image."""
    return {step: answer["logits"] for step, answer in zip(members, server.infer_all(member_calls(members, image)), strict=True)}


def check_averaging(server: ModelServer, model: str, outputs: Sequence[str], num_classes: int, averaging: AveragingSpec) -> None:
    """Compare an averaging model with numpy on fixed logits.

    Args:
        server: The server.
        model: The averaging model.
        outputs: The names of its outputs.
        num_classes: The number of classes.
        averaging: The average.

    Raises:
        ServerFailedError: The outputs differ.
    """
    logits = fixed_logits(len(averaging.weights), num_classes)
    inputs = {f"logits_{index}": values.astype(np.float32) for index, values in enumerate(logits)}
    expected = reference_outputs(logits, averaging.average, averaging.weights)
    _compare(server, model, server.infer(model, inputs, outputs, 1), expected, TOLERANCE, "numpy's average of the same logits")


def check_ensemble_outputs(
    server: ModelServer,
    ensemble: str,
    actual: Mapping[str, Array],
    logits: Sequence[Array],
    averaging: AveragingSpec,
    tolerance: float,
) -> None:
    """Compare an ensemble's outputs with numpy's average of its members' logits for the same image.

    Args:
        server: The server.
        ensemble: The ensemble.
        actual: The ensemble's outputs.
        logits: The logits of each member, (1, K).
        averaging: The average.
        tolerance: The largest difference allowed, from `tolerance_for`.

    Raises:
        ServerFailedError: The outputs differ.
    """
    expected = reference_outputs(logits, averaging.average, averaging.weights)
    _compare(server, ensemble, actual, expected, tolerance, "numpy's average of its members' outputs")


def tolerance_for(configs: Sequence[Mapping[str, Any]], versions: Sequence[int]) -> float:
    """Return how much an ensemble may differ from numpy's average of its members' separate outputs.

    Args:
        configs: The members' configurations on the server.
        versions: The members' versions.
    """
    for config, version in zip(configs, versions, strict=True):
        precision = config.get("parameters", {}).get(f"precision.{version}", {}).get("string_value", "fp32")
        kinds = {group.get("kind", "KIND_CPU") for group in config.get("instance_group", [])}
        if precision != "fp32" or config.get("backend") == "tensorrt" or not kinds <= {"KIND_CPU", "KIND_AUTO"}:
            return ROUNDED_TOLERANCE
    return TOLERANCE


def _compare(
    server: ModelServer, model: str, actual: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float, reference: str
) -> None:
    context = call_context(server.url, "run model", model)
    for output, values in actual.items():
        expected_values = expected[output]
        if values.shape != expected_values.shape:
            raise service_error(ServerFailedError, context, f"{output} has the shape {values.shape}, expected {expected_values.shape}")
        difference, scale = largest_difference(values, expected_values), difference_scale(expected_values)  # an entropy can be above 1
        if difference > tolerance:
            reason = f"{output} differs by {difference * scale:.3g} from {reference}, expected at most {tolerance * scale:.3g}"
            raise service_error(ServerFailedError, context, reason)
