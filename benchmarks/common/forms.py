"""Ways to get an ensemble's probabilities, and whether their answers are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.timing import Predict
from defensemble import Client
from defensemble_repository.averaging import TOLERANCE, largest_difference


@dataclass(frozen=True)
class Form:
    """A way to get the ensemble's probabilities; `protocol` is None where it stays in the caller's process."""

    name: str
    predict: Predict
    protocol: str | None = None
    spins: bool = False


class WrongAnswerError(Exception):
    """A form answers otherwise than numpy's average of the members, so its time means nothing."""


def check_answers(form: Form, images: NDArray[np.float32], expected: Array) -> float:
    """The largest difference between a form's probabilities for `images` (N, C, H, W) and the expected ones (N, K).

    Raises:
        WrongAnswerError: It is above the tolerance.
    """
    got = form.predict(images)
    difference = largest_difference(got, expected)
    if difference > TOLERANCE:
        raise WrongAnswerError(
            f"{form.name} answers shape {got.shape} that differs by {difference:.3g} from numpy's average, "
            f"expected shape {expected.shape} within {TOLERANCE:g}"
        )
    return difference


def asked_in_process(session: onnxruntime.InferenceSession) -> Predict:
    """The probabilities that a fused graph answers."""

    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        probabilities: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        return probabilities

    return predict


def asked_of(client: Client) -> Predict:
    """The probabilities that a client's own model answers."""
    return lambda images: client.predict(images).probabilities
