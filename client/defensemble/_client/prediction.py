"""The predictions of a model."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from .._exceptions import OutputNotRequestedError
from .._transport.base import OutputRequest
from .checks import check_count
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


def top_indices(probabilities: NDArray[np.floating[Any]], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` most probable classes in order, (N, count); all K if there are fewer."""
    best: NDArray[np.intp] = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return best


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The prediction of a model for N images and K classes. Arrays are read-only.

    It is a sequence: `prediction[i]` and iteration give predictions of length 1, slices and index arrays those of several images. All
    have the model, server, request and latency of the call.

    Attributes:
        model: Name of the model.
        class_names: K names; the indices as strings if the model has no names.
        received: The requested outputs, by name.
        model_version: Version of the model that responded; empty if the server does not report it.
        request_id: Id of the request, which servers log; empty if there is none.
        latency_s: Seconds that the call took, with all of its images and retries.
        url: The server that responded.

    Example:
        >>> prediction = client.predict(images)
        >>> for label, probability in zip(prediction.labels, prediction.confidence):
        ...     print(f"{label}: {probability:.0%}")
        >>> prediction[0].top(3)
        [[('cat', 0.81), ('dog', 0.12), ('frog', 0.03)]]
        >>> uncertain = prediction[prediction.entropy > 1]  # a prediction of these images
    """

    model: str
    class_names: tuple[str, ...]
    received: Mapping[str, NDArray[np.float32]]
    model_version: str = ""
    request_id: str = ""
    latency_s: float = 0.0
    url: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.received.values())))

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | Sequence[bool] | NDArray[Any]) -> Prediction:
        if isinstance(index, slice):
            return self._rows(index)
        if isinstance(index, (list, np.ndarray)) and np.ndim(index) == 1:
            return self._rows(np.asarray(index) if len(index) else np.empty(0, np.intp))
        try:
            position = operator.index(index)  # type: ignore[arg-type]
        except TypeError:
            kind = type(index).__name__
            raise TypeError(f"a prediction is indexed by an integer, a slice or a 1-D array of integers or booleans, not {kind}") from None
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"image {position} of a prediction of {count} images")
        position %= count
        return self._rows(slice(position, position + 1))

    def __iter__(self) -> Iterator[Prediction]:
        for position in range(len(self)):
            yield self._rows(slice(position, position + 1))

    def __repr__(self) -> str:
        count = len(self)
        version = f" version {self.model_version}" if self.model_version else ""
        source = f"; {1000 * self.latency_s:.3g} ms, {self.url}" if self.url else ""
        outputs = ", ".join(f"{name} {value.shape}" for name, value in self.received.items())
        shown = ""
        if "probabilities" in self.received and count:
            first = self[:4]
            pairs = ", ".join(f"{label} {value:.3f}" for label, value in zip(first.labels, first.confidence, strict=True))
            shown = f": {pairs}{', ...' if count > 4 else ''}"
        return f"<Prediction of {count} image{'' if count == 1 else 's'} by {self.model!r}{version}{shown}; outputs: {outputs}{source}>"

    def _repr_html_(self) -> str:
        from .prediction_html import prediction_html

        return prediction_html(self)

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
    def confidence(self) -> NDArray[np.float32]:
        """Probabilities of the most probable classes, (N,)."""
        largest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return largest

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of each image, in order, as (label, probability).

        Args:
            count: Number of classes; all if the model has fewer.

        Raises:
            InputError: `count` is no positive integer.
            OutputNotRequestedError: Probabilities were not requested in `predict`.
        """
        best = top_indices(self.probabilities, check_count(count, "the number of classes"))
        names = self.class_names
        rows = zip(best.tolist(), np.take_along_axis(self.probabilities, best, axis=1).tolist(), strict=True)
        return [[(names[index], value) for index, value in zip(indices, values, strict=True)] for indices, values in rows]

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

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """Return the prediction as values that `json.dumps` accepts.

        The keys are `model`, `model_version`, `request_id`, `latency_s`, `url` and `images`. `images` has an object for each image:
        `label`, `index` and `probability` of the most probable class, `top` (a list of such triples, as objects), `entropy`, and, if they
        were received, `mutual_information` (a number) and `member_probabilities` (a list for each member). Without probabilities, it has
        only what was received.

        Args:
            top: Number of classes in `top`; all if the model has fewer.

        Raises:
            InputError: `top` is no positive integer.
        """
        images: list[dict[str, Any]] = [{} for _ in range(len(self))]
        top = check_count(top, "the number of classes")
        if "probabilities" in self.received:
            best = top_indices(self.probabilities, top)
            for image, indices, classes in zip(images, best.tolist(), self.top(top), strict=True):
                entries = [
                    {"label": label, "index": index, "probability": probability}
                    for index, (label, probability) in zip(indices, classes, strict=True)
                ]
                image |= {**entries[0], "top": entries}
        for name, values in self.to_numpy().items():
            if name in ("entropy", "mutual_information", "member_probabilities"):
                for image, value in zip(images, values.tolist(), strict=True):
                    image[name] = value
        metadata = {"model": self.model, "model_version": self.model_version, "request_id": self.request_id}
        return {**metadata, "latency_s": self.latency_s, "url": self.url, "images": images}

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Return the received outputs by name and, with probabilities, `indices`, `labels` and `entropy`; for `numpy.savez`, for example.

        Example:
            >>> np.savez("prediction.npz", **prediction.to_numpy())
        """
        arrays: dict[str, NDArray[Any]] = dict(self.received)
        if "probabilities" in arrays:
            arrays |= {"indices": self.indices, "labels": np.array(self.labels, np.str_), "entropy": self.entropy}
        return arrays

    def _rows(self, rows: slice | NDArray[Any]) -> Prediction:
        received = {name: value[rows] for name, value in self.received.items()}
        if not isinstance(rows, slice):  # copies; a view of a read-only array is read-only
            for value in received.values():
                value.setflags(write=False)
        return Prediction(self.model, self.class_names, received, self.model_version, self.request_id, self.latency_s, self.url)

    def _output(self, name: str) -> NDArray[np.float32]:
        if name not in self.received:
            call = f"predict(images, outputs=({', '.join(repr(output) for output in (*self.received, name))}))"
            raise OutputNotRequestedError(f"this prediction has {', '.join(self.received)} but not {name}: call {call}")
        return self.received[name]


def response_mismatch(response: Mapping[str, NDArray[Any]], requests: Sequence[OutputRequest], count: int, info: ModelInfo) -> str | None:
    """Return why a response does not match the requested outputs for `count` images, or None if it does."""
    num_classes = len(info.class_names)
    for output in requests:
        name = output.name
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
        if 0 in finite.tobytes():  # between two calls, caches are lost, and a second function of numpy takes 20 us more
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


def join_outputs(parts: Sequence[Mapping[str, NDArray[np.float32]]]) -> Mapping[str, NDArray[np.float32]]:
    """Return the received outputs of several requests as those of one, in order. All have the same outputs; there is at least one."""
    if len(parts) == 1:
        return parts[0]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for value in joined.values():
        value.setflags(write=False)
    return joined
