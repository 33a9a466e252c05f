"""The targets of probes: served models, and Python functions. All images that go to them are counted."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.names import RESERVED_PREFIXES

from .._client.client import Client
from .._client.model_info import ModelInfo, steps_from_config
from .._client.prediction import entropy
from .._client.retries import RetryPolicy
from .._coroutines import run_blocking
from .._exceptions import InputError, ModelNotFoundError, ServiceError
from .._transport.base import ConnectionOptions, OutputRequest, ServerMetadata, Transport
from .._transport.error_mapping import call_context, protocol_errors
from .._transport.factory import transport_from_url
from .counting import CountingTransport, SentCounts
from .outcome import MAX_NAME
from .uncertainty import MEASURES

AnswerType = Literal["probabilities", "labels", "top-1"]
ANSWER_TYPES: tuple[AnswerType, ...] = ("probabilities", "labels", "top-1")
MAX_BATCH = 64


@dataclass(frozen=True)
class Response:
    """What a target returned for k images.

    Attributes:
        classes: int64 (k,).
        probabilities: float32 (k, K); None if the target only returns classes.
        mutual_information: float32 (k,) in nats; None if the target does not return it.

    Example:
        >>> target.ask(images).classes
    """

    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32] | None = None
    mutual_information: NDArray[np.float32] | None = None

    @property
    def entropy(self) -> NDArray[np.float32] | None:
        """The entropy of the probabilities, (k,), in nats."""
        return None if self.probabilities is None else entropy(self.probabilities)

    def measured(self) -> dict[str, NDArray[np.float64]]:
        """Return those of `MEASURES` that the response has, float64 (k,) in nats, rounded to float16, which halves the size of results."""
        values = {name: getattr(self, name) for name in MEASURES}
        return {name: value.ravel().astype(np.float16).astype(np.float64) for name, value in values.items() if value is not None}


class Target(ABC):
    """A classifier that a probe asks.

    Attributes:
        name: Name of the target.
        role: `ensemble`, `member`, `other` or `function`.
        members: Names of the models that an ensemble runs.
        counts: The images that were sent to it.
        max_batch: The most images of one call.
        answers: What it returns.
        in_parallel: The most calls at the same time.

    Example:
        >>> targets = [FunctionTarget("mine", classify), *served_targets("http://localhost:8000")]
    """

    name: str
    role: str = "other"
    members: tuple[str, ...] = ()
    max_batch: int = MAX_BATCH
    answers: AnswerType = "probabilities"
    in_parallel: int = 4
    num_classes: int | None = None

    def __init__(self) -> None:
        self.counts = SentCounts()

    def ask(self, images: NDArray[np.float32], purpose: str | None = None) -> Response:
        """Return the response for images.

        Args:
            images: float32 (k, C, H, W) in [0, 1], with k up to `max_batch`.
            purpose: `sanity` or `verification`, if the probe itself does not need the response.

        Raises:
            ServiceError: The server failed, also after retries.
            InputError: A function returned something else than classes or probabilities.
        """
        return self._ask(images, ("asked",) if purpose is None else ("asked", purpose))

    @abstractmethod
    def _ask(self, images: NDArray[np.float32], counters: tuple[str, ...]) -> Response:
        """Return the response, and count the images: in `sent` whenever they leave, in `counters` when they leave first."""

    def member_probabilities(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the probabilities (k, K) of the model and of each of its members, as a sanity check; empty if it returns none.

        Args:
            images: float32 (k, C, H, W) in [0, 1].

        Raises:
            ServiceError: The server failed, also after retries.
        """
        batches = [images[start : start + self.max_batch] for start in range(0, len(images), self.max_batch)]
        found = [self.ask(batch, "sanity").probabilities for batch in batches]
        return {} if any(one is None for one in found) else {self.name: np.concatenate(found)}  # type: ignore[arg-type]

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what identifies the model at this moment, as JSON: it changes when the model is edited or replaced."""

    def close(self) -> None:  # noqa: B027 - most targets have nothing to close
        """Close connections."""


class FunctionTarget(Target):
    """A Python function as a target.

    Args:
        name: Name of the target.
        function: Takes images float32 (k, C, H, W) in [0, 1]; returns classes, integers (k,), or probabilities, floats (k, K).
        max_batch: The most images of one call.

    Raises:
        InputError: `max_batch` is below 1, or the name is empty or too long. When it is asked: the function returns something else, or
            other numbers of classes.

    Example:
        >>> target = FunctionTarget("linear", lambda images: (images.reshape(len(images), -1) @ weights).argmax(axis=1))
    """

    role = "function"
    in_parallel = 1  # the function need not be thread-safe

    def __init__(self, name: str, function: Callable[[NDArray[np.float32]], NDArray[Any]], *, max_batch: int = MAX_BATCH) -> None:
        super().__init__()
        if max_batch < 1:
            raise InputError(f"max_batch must be at least 1, got {max_batch}")
        if not 1 <= len(name) <= MAX_NAME:
            raise InputError(f"the name of a target must have 1 to {MAX_NAME} characters, got {len(name)}")
        self.name, self.max_batch = name, max_batch
        self._function = function
        self._kind: str | None = None  # of its first result
        self._lock = threading.Lock()

    def _ask(self, images: NDArray[np.float32], counters: tuple[str, ...]) -> Response:
        self.counts.add(len(images), "sent", *counters)
        with self._lock:
            returned = self._function(images)
        try:
            returned = np.asarray(returned)
        except ValueError as error:
            raise InputError(f"target {self.name!r} must return an array of classes or probabilities: {error}") from error
        kind, shape = returned.dtype.kind, returned.shape
        if self._kind in (None, kind):
            if kind in "iu" and shape == (len(images),) and returned.min() >= 0:
                self._kind = kind
                return Response(returned.astype(np.int64))
            if kind == "f" and returned.ndim == 2 and shape == (len(images), self.num_classes or shape[1]) and shape[1] > 0:
                self._kind, self.num_classes = kind, shape[1]
                return _checked_probabilities(returned, self.name)
        raise InputError(
            f"target {self.name!r} must return {len(images)} class indices (integers from 0) or ({len(images)}, "
            f"{self.num_classes or 'K'}) probabilities, always the same of both; got {returned.dtype} of shape {shape}"
            + (f", from {returned.min()} on" if kind in "iu" and returned.size else "")
        )

    def identity(self) -> dict[str, Any]:
        """Return the name of the function, whose state is unknown."""
        return {"function": getattr(self._function, "__qualname__", type(self._function).__name__)}


def _checked_probabilities(values: NDArray[Any], name: str) -> Response:
    probabilities = values.astype(np.float32)
    if not (probabilities.min() >= 0 and np.abs(probabilities.sum(axis=1) - 1).max() < 1e-3):
        raise InputError(f"target {name!r} must return probabilities of sum 1, got rows of sum {values.sum(axis=1).min():g} and more")
    return Response(probabilities.argmax(axis=1).astype(np.int64), probabilities)


class ServedTarget(Target):
    """A served model as a target.

    Args:
        client: The client, which counts with `counting`.
        counting: Its transport.
        info: The model.
        role: `ensemble`, `member` or `other`.
        answers: What the attacker sees.

    Example:
        >>> [target.name for target in served_targets("http://localhost:8000")]
    """

    def __init__(self, client: Client, counting: CountingTransport, info: ModelInfo, role: str, answers: AnswerType) -> None:
        super().__init__()
        self.name, self.role, self.answers, self.info = info.name, role, answers, info
        self.members = tuple(step for step in info.steps if not step.startswith(RESERVED_PREFIXES))  # without the averaging model
        self.max_batch = min(info.max_batch_size or MAX_BATCH, MAX_BATCH)
        self.in_parallel = client.max_parallel
        self.num_classes = len(info.class_names)
        self.counts = counting.counts[info.name]
        self._client, self._counting = client, counting
        has_mutual_information = "mutual_information" in info.outputs and answers == "probabilities"
        self._outputs = ("probabilities", "mutual_information") if has_mutual_information else ("probabilities",)

    def _ask(self, images: NDArray[np.float32], counters: tuple[str, ...]) -> Response:
        with self._counting.counted(len(images), counters) as request_id:
            if self.answers == "top-1":
                return self._ask_top_1(images, request_id)
            prediction = self._client.predict(images, outputs=self._outputs, model=self.name, request_id=request_id)
        classes = prediction.indices.astype(np.int64)
        if self.answers == "labels":
            return Response(classes)
        return Response(classes, prediction.probabilities, prediction.received.get("mutual_information"))

    def member_probabilities(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the probabilities of the model and of its members, whatever the attacker sees."""
        outputs = tuple(name for name in ("probabilities", "member_probabilities") if name in self.info.outputs)
        with self._counting.counted(len(images), ("asked", "sanity")) as request_id:
            prediction = self._client.predict(images, outputs=outputs or ("probabilities",), model=self.name, request_id=request_id)
        found = {self.name: prediction.probabilities}
        if "member_probabilities" in outputs:
            found |= {name: prediction.member_probabilities[:, index] for index, name in enumerate(self.members)}
        return found

    def server(self) -> ServerMetadata:
        """Return name and version of the server."""
        return self._client.server_metadata()

    def close(self) -> None:
        """Close the client, and with it all targets of `served_targets`."""
        self._client.close()

    def _ask_top_1(self, images: NDArray[np.float32], request_id: str) -> Response:
        output = self.info.score_output
        request = [OutputRequest(output, class_count=1)]
        response = run_blocking(self._client._calls.infer(self.info, images, request, request_id))
        with protocol_errors(call_context(self._client.url, "classify by model", self.name)):
            values = response[output].reshape(len(images))
            return Response(np.array([int(text.decode().split(":", 2)[1]) for text in values.tolist()], np.int64))

    def identity(self) -> dict[str, Any]:
        """Return digests of the configuration, of graphs and of masks, and the versions that responded."""
        calls = self._client._calls
        config = run_blocking(calls.config(self.name))
        members = {step: _digests(run_blocking(calls.config(step))) for step in self.members}
        return {
            "config_sha256": _config_digest(config),
            "versions": sorted(self._counting.versions[self.name]),
            **_digests(config),
            **({"members": members} if members else {}),
        }


def _config_digest(config: Mapping[str, Any]) -> str | None:
    """Return the digest of a configuration, the same over HTTP and gRPC; None if it cannot be read."""
    from google.protobuf.json_format import ParseDict, ParseError

    from defensemble_repository.pbtxt import schema

    try:
        message = ParseDict(dict(config), schema.ModelConfig(), ignore_unknown_fields=True)
    except ParseError:  # another server's
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest() if config else None


def _digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of graphs and masks that a model's configuration has for each of its versions."""
    parameters = config.get("parameters", {})
    return {
        name: str(value.get("string_value")) for name, value in sorted(parameters.items()) if name.startswith(("sha256.", "mask_digest."))
    }


def _steps_of_all(client: Client) -> set[str]:
    """Return the models that the server's ensembles run, also those that are no targets; empty if the server does not list its models."""
    with suppress(ServiceError), protocol_errors(call_context(client.url, "read the configurations of all models")):
        return {step for name in client.models() for step in steps_from_config(run_blocking(client._calls.config(name)))}
    return set()


def served_targets(
    url: str,
    names: Sequence[str] = (),
    *,
    answers: AnswerType = "probabilities",
    timeout_s: float = 60.0,
    max_parallel: int = 4,
    options: ConnectionOptions | None = None,
    transport: Transport | None = None,
    retry: RetryPolicy | None = None,
) -> list[ServedTarget]:
    """Return served models as targets. They share a client, which counts what it sends; close one of them to close it.

    Args:
        url: The server's URL.
        names: The models; none: the ensembles, their members and all other image classifiers.
        answers: What the attacker sees: `probabilities`, `labels` (the most probable class of them), or `top-1` (the server only sends
            that, by Triton's classification extension).
        timeout_s: Timeout of a call in seconds, with its retries.
        max_parallel: Calls to one target at the same time.
        options: TLS and compression.
        transport: Used in place of the network.
        retry: When failed requests are sent again.

    Raises:
        InputError: A model is named twice, or is no image classifier.
        ModelNotFoundError: The server has no such model, or none that classifies images.
        ServiceError: The server could not be reached.

    Example:
        >>> targets = served_targets("http://localhost:8000", ["ensemble"], answers="labels")
    """
    if answers not in ANSWER_TYPES:
        raise InputError(f"answers must be one of {', '.join(ANSWER_TYPES)}, got {answers!r}")
    if len(set(names)) != len(names):
        raise InputError(f"targets name a model twice, got {', '.join(names)}: name each model once")
    counting = CountingTransport(transport or transport_from_url(url, options))
    client = Client(url, timeout_s=timeout_s, max_parallel=max_parallel, retry=retry, transport=counting.as_transport())
    try:
        infos = client.classifiers() if not names else [client.describe(name) for name in names]
        if not infos:
            served = ", ".join(client.models()) or "none at all"
            raise ModelNotFoundError(f"{client.url} serves no image classifier; its models: {served}")
        members = {step for info in infos for step in info.steps}
        if names and not all(info.is_ensemble or info.name in members for info in infos):  # perhaps of an ensemble that is no target
            members |= _steps_of_all(client)
    except BaseException:
        client.close()
        raise
    roles = {info.name: "ensemble" if info.is_ensemble else "member" if info.name in members else "other" for info in infos}
    if not names:
        infos = sorted(infos, key=lambda info: ("ensemble", "member", "other").index(roles[info.name]))
    return [ServedTarget(client, counting, info, roles[info.name], answers) for info in infos]
