"""Does a server average as it should? Its answers beside numpy's, on one fixed image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import ServerFailedError
from .._transport.error_mapping import service_error
from .server_models import Served

Array = NDArray[np.float64]
# Between an average in float32 and numpy's in float64, of the same logits.
TOLERANCE = 1e-5
# Where members compute in fewer bits, or on a GPU: two runs of one of them, in batches of other sizes, differ.
ROUNDED_TOLERANCE = 1e-2


@dataclass(frozen=True)
class AveragingSpec:
    """What is averaged, and with which weights, normalised to sum 1."""

    average: str
    weights: Sequence[float]


def fixed_image(shape: Sequence[int]) -> NDArray[np.float32]:
    """One image (1, C, H, W) in [0, 1), the same every time; a size below 0, where any will do, counts as 1."""
    return np.random.default_rng(0).random((1, *(max(1, size) for size in shape)), np.float32)


def averages_by_numpy(logits: Sequence[Array], averaging: AveragingSpec) -> dict[str, Array]:
    """All outputs of an ensemble, by their definitions, from its members' logits, each (N, K)."""
    votes = np.stack(logits, axis=1)  # (N, M, K)
    weights = np.array(averaging.weights).reshape(1, -1, 1)
    members = _softmax(votes)
    mixture = (weights * members).sum(axis=1)
    probabilities = mixture if averaging.average == "probabilities" else _softmax((weights * votes).sum(axis=1))
    expected = (weights[..., 0] * _entropy(members)).sum(axis=1, keepdims=True)
    return {
        "probabilities": probabilities,
        "member_probabilities": members,
        "entropy": _entropy(probabilities)[:, np.newaxis],
        "mutual_information": _entropy(mixture)[:, np.newaxis] - expected,
    }


def check_averaging(served: Served, model: str, outputs: Sequence[str], logits: Sequence[Array], averaging: AveragingSpec) -> None:
    """Compares an averaging model with numpy on the same logits.

    Raises:
        ServiceError: It does not answer, or answers something else.
    """
    inputs = {f"logits_{index}": votes.astype(np.float32) for index, votes in enumerate(logits)}
    expected = averages_by_numpy([votes.astype(np.float64) for votes in inputs.values()], averaging)
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
    """Compares an ensemble's answer with numpy's average of its members' logits for the same image.

    Raises:
        ServiceError: It does not answer, or answers something else.
    """
    got = served.infer(ensemble, {"images": image}, outputs)
    _compare(served, ensemble, got, averages_by_numpy(logits, averaging), tolerance, "numpy's average of its members'")


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
        difference = float(np.abs(answer - wanted).max())
        allowed = tolerance * max(1.0, float(np.abs(wanted).max()))  # an entropy can be above 1
        if not difference <= allowed:
            told = f"{output} differs by {difference:.3g} from {whose}, allowed is {allowed:.3g}"
            raise service_error(ServerFailedError, what, told)


def _softmax(logits: Array) -> Array:
    powers: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: Array = powers / powers.sum(axis=-1, keepdims=True)
    return normalised


def _entropy(probabilities: Array) -> Array:
    """-sum p log p over the last axis, in nats; 0 log 0 is 0."""
    logarithms = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    total: Array = -(probabilities * logarithms).sum(axis=-1)
    return total
