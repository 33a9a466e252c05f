"""The predictions of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import OutputNotRequestedError
from .._transport.base import OutputRequest
from .model_info import ModelInfo


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return the softmax over the last axis, computed in float64, as float32."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted.astype(np.float32)


def entropy(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return Shannon's entropy over the last axis in nats, with 0 log 0 = 0; computed in float64, as float32."""
    exact = probabilities.astype(np.float64)
    nats: NDArray[np.float64] = -np.sum(exact * np.log(np.where(exact > 0, exact, 1.0)), axis=-1)
    return np.maximum(nats, 0.0).astype(np.float32)  # the sum can be -0.0, or negative if a probability is rounded above 1


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction of a model for N images and K classes. Arrays are read-only.

    Attributes:
        model: Name of the model.
        class_names: K names; the indices as strings if the model has no names.
        received: The requested outputs, by name.

    Example:
        >>> prediction = client.predict(images)
        >>> for label, probability in zip(prediction.labels, prediction.probabilities.max(axis=1)):
        ...     print(f"{label}: {probability:.0%}")
    """

    model: str
    class_names: tuple[str, ...]
    received: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(next(iter(self.received.values())))

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name} {value.shape}" for name, value in self.received.items())
        if "probabilities" not in self.received:
            return f"<Prediction of {len(self)} images by {self.model!r}; outputs: {outputs}>"
        best = self.probabilities.max(axis=1)
        shown = ", ".join(f"{label} {value:.3f}" for label, value in zip(self.labels[:4], best[:4], strict=True))
        return f"<Prediction of {len(self)} images by {self.model!r}: {shown}{', ...' if len(self) > 4 else ''}; outputs: {outputs}>"

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities, (N, K); each row sums to 1.

        Raises:
            OutputNotRequestedError: They were not requested in `predict`.
        """
        return self._output("probabilities")

    @property
    def indices(self) -> NDArray[np.intp]:
        """Indices of the most probable classes, (N,)."""
        best: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return best

    @property
    def labels(self) -> list[str]:
        """Names of the most probable classes, N of them; the indices as strings if the model has no names."""
        return [self.class_names[index] for index in self.indices]

    @property
    def entropy(self) -> NDArray[np.float32]:
        """Entropy of the probabilities, (N,), in nats; computed from the probabilities if the server did not send it."""
        if "entropy" in self.received:
            return self.received["entropy"]
        if "probabilities" not in self.received:
            return self._output("entropy")
        return entropy(self.probabilities)

    @property
    def member_probabilities(self) -> NDArray[np.float32]:
        """Probabilities of each of the M members, (N, M, K), in the order of the ensemble.

        Raises:
            OutputNotRequestedError: They were not requested in `predict`.
        """
        return self._output("member_probabilities")

    @property
    def mutual_information(self) -> NDArray[np.float32]:
        """Disagreement of the members, (N,), in nats: H(weighted mean of the members) - weighted mean of H(member).

        Raises:
            OutputNotRequestedError: It was not requested in `predict`.
        """
        return self._output("mutual_information")

    def _output(self, name: str) -> NDArray[np.float32]:
        if name not in self.received:
            call = f"predict(images, outputs=({', '.join(repr(output) for output in (*self.received, name))}))"
            raise OutputNotRequestedError(f"this prediction has {', '.join(self.received)} but not {name}: call {call}")
        return self.received[name]


def response_mismatch(response: Mapping[str, NDArray[Any]], requests: Sequence[OutputRequest], count: int, info: ModelInfo) -> str | None:
    """Return why a response does not match the requested outputs for `count` images, or None if it does."""
    num_classes = len(info.class_names)
    for name in (output.name for output in requests):
        value = response.get(name)
        if value is None or value.shape[:1] != (count,):
            got = "nothing" if value is None else f"{len(value)} rows" if value.ndim else "a single value"
            return f"the response has {got} for output {name!r} and {count} images"
        if name in ("entropy", "mutual_information"):
            matches, expected = value.shape[1:] in ((1,), ()), f"({count}, 1)"
        elif name == "member_probabilities":
            matches, expected = value.ndim == 3 and value.shape[2] == num_classes, f"({count}, members, {num_classes})"
        else:
            matches, expected = value.shape[1:] == (num_classes,), f"({count}, {num_classes})"
        if not matches or value.dtype.kind != "f":
            return f"the response has {value.dtype} of shape {value.shape} for output {name!r}; expected floats of shape {expected}"
    return None


def non_finite_values(response: Mapping[str, NDArray[Any]]) -> str | None:
    """Return which output has NaN or infinity, and for how many images, or None. Such values would still pass as some class."""
    for name, value in response.items():
        finite = np.isfinite(value)
        if not np.logical_and.reduce(finite, axis=None):
            rows = finite.reshape(len(value), -1).all(axis=1)
            return f"the response has values that are not finite for {np.count_nonzero(~rows)} of {len(rows)} images in output {name!r}"
    return None


def outputs_from_response(response: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return a server's outputs in the form of a `Prediction`: the softmax of logits, and no axis of size 1 for one value per image."""
    received: dict[str, NDArray[np.float32]] = {}
    for name, value in response.items():
        if name == "logits":
            received["probabilities"] = softmax(value)
        elif name in ("entropy", "mutual_information"):
            received[name] = value.reshape(len(value))
        else:
            received[name] = value
    for value in received.values():
        value.setflags(write=False)
    return received
