"""A model's answer about images."""

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
    """Softmax over the last axis, float64 inside and float32 out."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted.astype(np.float32)


def entropy(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Shannon's entropy over the last axis in nats, with 0 log 0 = 0; float64 inside and float32 out."""
    exact = probabilities.astype(np.float64)
    nats: NDArray[np.float64] = -np.sum(exact * np.log(np.where(exact > 0, exact, 1.0)), axis=-1)
    return np.maximum(nats, 0.0).astype(np.float32)  # a sum of -0.0, or a probability of 1 and a rounding more


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """A model's answer about N images, over K classes; the arrays are read-only.

    `received` holds the outputs that were asked for, by name; `class_names` has K names, indices as text where there are none.
    """

    model: str
    class_names: tuple[str, ...]
    received: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(next(iter(self.received.values())))

    def __repr__(self) -> str:
        held = ", ".join(f"{name} {value.shape}" for name, value in self.received.items())
        if "probabilities" not in self.received:
            return f"<Prediction of {len(self)} images by {self.model!r}: {held}>"
        best = self.probabilities.max(axis=1)
        shown = ", ".join(f"{label} {value:.3f}" for label, value in zip(self.labels[:4], best[:4], strict=True))
        return f"<Prediction of {len(self)} images by {self.model!r}: {shown}{', ...' if len(self) > 4 else ''}; holds {held}>"

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities, (N, K), each row summing to 1.

        Raises:
            OutputNotRequestedError: `predict` was not asked for them.
        """
        return self._held("probabilities")

    @property
    def indices(self) -> NDArray[np.intp]:
        """Indices of the most probable classes, (N,)."""
        best: NDArray[np.intp] = self.probabilities.argmax(axis=1)
        return best

    @property
    def labels(self) -> list[str]:
        """Names of the most probable classes, N of them; indices as text where the model has no names."""
        return [self.class_names[index] for index in self.indices]

    @property
    def entropy(self) -> NDArray[np.float32]:
        """Entropy of the probabilities, (N,), in nats; computed here where the server was not asked for it."""
        if "entropy" in self.received:
            return self.received["entropy"]
        if "probabilities" not in self.received:
            return self._held("entropy")
        return entropy(self.probabilities)

    @property
    def member_probabilities(self) -> NDArray[np.float32]:
        """Probabilities by each of M members, (N, M, K), in the order of the ensemble's members.

        Raises:
            OutputNotRequestedError: `predict` was not asked for them.
        """
        return self._held("member_probabilities")

    @property
    def mutual_information(self) -> NDArray[np.float32]:
        """How far the members disagree, (N,), in nats: H(weighted mean of the members) - weighted mean of H(member).

        Raises:
            OutputNotRequestedError: `predict` was not asked for it.
        """
        return self._held("mutual_information")

    def _held(self, name: str) -> NDArray[np.float32]:
        if name not in self.received:
            have = ", ".join(self.received)
            mend = f"call predict(images, outputs=({', '.join(repr(one) for one in (*self.received, name))}))"
            raise OutputNotRequestedError(f"this prediction holds {have} and not {name}: {mend}")
        return self.received[name]


def response_mismatch(answer: Mapping[str, NDArray[Any]], asked: Sequence[OutputRequest], count: int, info: ModelInfo) -> str | None:
    """Why this is no answer to `asked` about `count` images by a model; None where it is one."""
    num_classes = len(info.class_names)
    for name in (output.name for output in asked):
        value = answer.get(name)
        if value is None or value.shape[:1] != (count,):
            got = "nothing" if value is None else f"{len(value)} rows" if value.ndim else "a single value"
            return f"it answered {got} for output {name!r} and {count} images"
        if name in ("entropy", "mutual_information"):
            fits, wanted = value.shape[1:] in ((1,), ()), f"({count}, 1)"
        elif name == "member_probabilities":
            fits, wanted = value.ndim == 3 and value.shape[2] == num_classes, f"({count}, members, {num_classes})"
        else:
            fits, wanted = value.shape[1:] == (num_classes,), f"({count}, {num_classes})"
        if not fits or value.dtype.kind != "f":
            return f"it answered {value.dtype} of shape {value.shape} for output {name!r}, expected floats of shape {wanted}"
    return None


def not_finite(answer: Mapping[str, NDArray[Any]]) -> str | None:
    """For how many images an output holds NaN or infinity, which would count as some class; None where all is finite."""
    for name, value in answer.items():
        finite = np.isfinite(value)
        if not np.logical_and.reduce(finite, axis=None):
            rows = finite.reshape(len(value), -1).all(axis=1)
            return f"it answered values that are not finite for {np.count_nonzero(~rows)} of {len(rows)} images in output {name!r}"
    return None


def outputs_from_response(answer: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """A server's outputs as a `Prediction` holds them: softmax of logits, one number an image without the axis of size 1."""
    received: dict[str, NDArray[np.float32]] = {}
    for name, value in answer.items():
        if name == "logits":
            received["probabilities"] = softmax(value)
        elif name in ("entropy", "mutual_information"):
            received[name] = value.reshape(len(value))
        else:
            received[name] = value
    for value in received.values():
        value.setflags(write=False)
    return received
