"""Does a server average as it should? Its answers beside numpy's, on one fixed image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.averaging import ROUNDED_TOLERANCE, TOLERANCE, difference_scale, largest_difference, reference_outputs

from .._exceptions import ServerFailedError
from .._transport.error_mapping import service_error
from .server_models import Served

Array = NDArray[np.float64]


@dataclass(frozen=True)
class AveragingSpec:
    """What is averaged, and with which weights, normalised to sum 1."""

    average: str
    weights: Sequence[float]


def fixed_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """One image (1, C, H, W) in [0, 1), the same every time; a size below 0, where any will do, counts as 1."""
    return np.random.default_rng(0).random((1, *(max(1, size) for size in shape)), np.float32)


def check_averaging(served: Served, model: str, outputs: Sequence[str], logits: Sequence[Array], averaging: AveragingSpec) -> None:
    """Compare an averaging model with numpy on the same logits; an error where it answers something else."""
    inputs = {f"logits_{index}": votes.astype(np.float32) for index, votes in enumerate(logits)}
    expected = reference_outputs([*inputs.values()], averaging.average, averaging.weights)
    _compare(served, model, served.infer(model, inputs, outputs, 1), expected, TOLERANCE, "numpy's of the same logits")


def check_answer(
    served: Served,
    ensemble: str,
    image: NDArray[np.float32],
    outputs: Sequence[str],
    logits: Sequence[Array],
    averaging: AveragingSpec,
    tolerance: float,
) -> None:
    """Compare an ensemble's answer with numpy's average of its members' logits for the same image; an error where it differs."""
    got = served.infer(ensemble, {"images": image}, outputs)
    expected = reference_outputs(logits, averaging.average, averaging.weights)
    _compare(served, ensemble, got, expected, tolerance, "numpy's average of its members'")


def tolerance_for(configs: Sequence[Mapping[str, Any]], versions: Sequence[int]) -> float:
    """How far an ensemble may be from numpy's average of what its members answer one by one, by their configurations as served."""
    for config, version in zip(configs, versions, strict=True):
        precision = config.get("parameters", {}).get(f"precision.{version}", {}).get("string_value", "fp32")
        kinds = {group.get("kind", "KIND_CPU") for group in config.get("instance_group", [])}
        if precision != "fp32" or config.get("backend") == "tensorrt" or not kinds <= {"KIND_CPU", "KIND_AUTO"}:
            return ROUNDED_TOLERANCE
    return TOLERANCE


def _compare(served: Served, model: str, got: Mapping[str, Array], expected: Mapping[str, Array], tolerance: float, whose: str) -> None:
    for output, answer in got.items():
        wanted = expected[output]
        what = f"{served.url}, asked to run model {model!r}"
        if answer.shape != wanted.shape:
            raise service_error(ServerFailedError, what, f"{output} has the shape {answer.shape}, expected {wanted.shape}")
        difference, scale = largest_difference(answer, wanted), difference_scale(wanted)  # an entropy can be above 1
        if difference > tolerance:
            told = f"{output} differs by {difference * scale:.3g} from {whose}, allowed is {tolerance * scale:.3g}"
            raise service_error(ServerFailedError, what, told)
