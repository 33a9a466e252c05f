"""Forms of an ensemble (ways to compute its probabilities), and a check of their outputs."""

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
    """A way to compute the ensemble's probabilities.

    Attributes:
        name: Name for tables.
        predict: Returns the probabilities of images.
        protocol: The protocol to the server; None for a form in the caller's process.
        spins: Whether waiting threads spin.
    """

    name: str
    predict: Predict
    protocol: str | None = None
    spins: bool = False


class WrongAnswerError(Exception):
    """The outputs of a form differ from numpy's average of the members, so its time is meaningless."""


def check_answers(form: Form, images: NDArray[np.float32], expected: Array) -> float:
    """Return the largest difference between a form's probabilities for `images` (N, C, H, W) and the expected ones (N, K).

    Raises:
        WrongAnswerError: The difference is above the tolerance.
    """
    got = form.predict(images)
    difference = largest_difference(got, expected)
    if difference > TOLERANCE:
        raise WrongAnswerError(
            f"{form.name} returned shape {got.shape} and differs by {difference:.3g} from numpy's average; "
            f"expected shape {expected.shape} and at most {TOLERANCE:g}"
        )
    return difference


def predict_in_process(session: onnxruntime.InferenceSession) -> Predict:
    """Return a function that computes probabilities with a fused graph in this process."""

    def predict(images: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        probabilities: NDArray[np.float32] = session.run(["probabilities"], {"images": images})[0]
        return probabilities

    return predict


def predict_with(client: Client) -> Predict:
    """Return a function that gets probabilities from a client's model."""
    return lambda images: client.predict(images).probabilities
