"""The client: calls the models of one server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .._exceptions import (
    ClientClosedError,
    DeadlineExceededError,
    ForbiddenError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from .._transport.base import OutputRequest, ServerMetadata, Transport
from .._transport.error_mapping import reading, service_error
from .._transport.factory import transport_from_url
from .model_info import (
    ModelInfo,
    averages_members,
    check_images,
    class_names_from_answer,
    fits,
    names_from_outputs,
    preprocessing_from_config,
    requests_from_outputs,
    signature_from_metadata,
    steps_from_config,
)
from .prediction import Prediction, not_finite, outputs_from_response, response_mismatch

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_LONGEST_TIMEOUT_S = 1e6  # what sockets and gRPC take without overflow


class Client:
    """Calls the models of one Triton server, at `http://HOST:PORT`, `https://`, `grpc://` or `grpcs://`; threads may share it.

    Without a `model`, the only ensemble that is served is called, be it one that Triton runs or one fused graph. What a model takes and
    what its classes are called is asked once, by the first call to it, and again only where images or an answer do not fit that any more:
    where the same model may get other names for its classes, make a new client. No call takes longer than `timeout_s`; such a look-up,
    before a call or after it, has as long again.

    A forked child may go on with a client of HTTP, which then makes connections of its own; gRPC does not survive a fork, so that a
    child's calls raise an error: there, make a new client. Another `transport`, such as a `FakeTransport`, takes the place of the network.

    Callers need no `admin_key`. Whoever edits what is served does, and through `transport`: it goes with calls of the repository and for
    configurations, and with no others.

    Raises:
        InputError: The URL is not a server's, the model's name is no text, the timeout is not positive, or the admin key is none or came
            with a transport.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout_s: float = 60.0,
        transport: Transport | None = None,
        admin_key: str | None = None,
    ) -> None:
        if transport is not None and admin_key is not None:
            raise InputError("got both transport and admin_key: give the key to the transport, GrpcTransport(url, admin_key=...)")
        self._transport = transport_from_url(url, admin_key) if transport is None else transport
        self._url = self._transport.url
        self._model = _checked_name(model)
        self._timeout_s = _checked_timeout(timeout_s)
        self._closed = False
        self._only_ensemble: str | None = None
        self._known: dict[str, ModelInfo] = {}

    def __repr__(self) -> str:
        return f"Client({self._url!r}, model={self._model!r}, timeout_s={self._timeout_s:g})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; may be called twice."""
        self._closed = True
        self._transport.close()

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._url

    @property
    def transport(self) -> Transport:
        """What this client asks the server through; it is closed with it."""
        return self._transport

    @property
    def timeout_s(self) -> float:
        """How long a call may take, in seconds."""
        return self._timeout_s

    def predict(self, images: NDArray[np.float32], outputs: Sequence[str] = ("probabilities",), model: str | None = None) -> Prediction:
        """Asks a model about images: float32, (N, C, H, W), in [0, 1], N up to the model's largest batch.

        `outputs` are some of probabilities, member_probabilities, entropy and mutual_information; only these are sent.
        A single network, whose output is `logits`, has probabilities (their softmax) and entropy.

        Raises:
            InputError: Images or outputs are not what the model takes, or no model was named and several ensembles are served.
            ServiceError: The server could not be reached, did not answer, or gave an invalid answer, such as NaN; see its subclasses.
        """
        names = names_from_outputs(outputs)
        info = self.describe(model)
        if not fits(images, info):
            info = self._look_again(info)
        checked = check_images(images, info)
        asked = requests_from_outputs(names, info)
        try:
            answer = self._transport.infer(info.name, {info.input_name: checked}, asked, self._timeout_s)
        except (ModelNotFoundError, RequestRefusedError):
            self._forget(info)  # the next call looks again
            raise
        got = {output.name: answer[output.name] for output in asked if output.name in answer}
        told = response_mismatch(got, asked, len(checked), info)
        if told is not None:
            info = self._look_again(info)
            told = response_mismatch(got, asked, len(checked), info)
        if told is not None or (told := not_finite(got)) is not None:
            raise service_error(ServerFailedError, f"{self._url}, asked to run model {info.name!r}", told)
        return Prediction(info.name, info.class_names, outputs_from_response(got))

    def describe(self, model: str | None = None) -> ModelInfo:
        """What a model takes and gives; asked of the server once.

        Raises:
            InputError: The model does not classify images, or none was named and several ensembles are served.
            ServiceError: The server could not be reached, or did not answer; see its subclasses.
        """
        self._check_open()
        name = _checked_name(model) or self._model or self._only_ensemble
        known = self._known.get(name or "")
        if known is None:
            # Threads that start together each look it up: two look-ups cost one small request more.
            ends = time.monotonic() + self._timeout_s
            name = name or self._find_ensemble(ends)
            known = self._known.get(name) or self._ask_about(name, ends)
            self._known[name] = known
        return known

    def models(self) -> list[str]:
        """Names of all models that the server has loaded, sorted, parts of ensembles among them.

        Raises:
            ServiceError: The server could not be reached, or did not answer.
        """
        self._check_open()
        return self._transport.models(self._timeout_s)

    def classifiers(self) -> list[ModelInfo]:
        """All models of the server that classify images, ensembles first, else by name.

        Raises:
            ServiceError: The server could not be reached, or did not answer.
        """
        found = []
        for name in self.models():
            try:
                found.append(self.describe(name))
            except InputError:  # an average of logits, or anything else that takes no images
                continue
        return sorted(found, key=lambda info: (not info.is_ensemble, info.name))

    def server_metadata(self) -> ServerMetadata:
        """The server's name and version.

        Raises:
            ServiceError: The server could not be reached, or did not answer.
        """
        self._check_open()
        return self._transport.server_metadata(self._timeout_s)

    def wait_ready(self, deadline_s: float = 60.0, model: str | None = None) -> None:
        """Waits until a real inference (one black image) is answered; a server's own word for "ready" can be too early.

        Raises:
            DeadlineExceededError: It was not, and what was seen last; chained to that.
            ForbiddenError: The server does not let this client call it, which waiting does not change.
            InputError: The model does not classify images, or none was named and several ensembles are served.
        """
        self._check_open()
        _checked_name(model)
        deadline = time.monotonic() + deadline_s
        pause_s = _FIRST_PAUSE_S
        last: ServiceError | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                ends = time.monotonic() + min(left, self._timeout_s)
                name = model or self._model or self._find_ensemble(ends)
                self._known[name] = self._ask_about(name, ends)
                return
            except (ForbiddenError, RequestRefusedError):
                raise
            except ServiceError as error:
                last = error
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise DeadlineExceededError(f"{self._url} was not ready within {deadline_s:g} s; last seen: {last}") from last

    def _find_ensemble(self, ends: float) -> str:
        models = self._transport.models(_left(ends))
        ensembles = []
        for name in models:
            try:
                metadata = self._transport.model_metadata(name, _left(ends))
                tensors = ([tensor.name for tensor in kind] for kind in (metadata.inputs, metadata.outputs))
                if averages_members(metadata.platform, *tensors):
                    ensembles.append(name)
            except (ModelNotFoundError, NotReadyError):  # unloaded since it was listed
                continue
        if len(ensembles) > 1:
            raise InputError(
                f"{self._url} serves {len(ensembles)} ensembles, {', '.join(ensembles)}: name one: Client(url, model=...), or --model NAME"
            )
        if not ensembles:
            served = f"only {', '.join(models)}" if models else "no model at all"
            raise ModelNotFoundError(f"{self._url} serves no ensemble, {served}: name a model, Client(url, model=...), or load an ensemble")
        self._only_ensemble = ensembles[0]
        return ensembles[0]

    def _ask_about(self, name: str, ends: float) -> ModelInfo:
        try:
            metadata = self._transport.model_metadata(name, _left(ends))
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{self._url} serves no model {name!r}, only {', '.join(self._transport.models(_left(ends)))}"
            ) from error
        signature = signature_from_metadata(metadata)
        try:
            config = self._transport.model_config(name, _left(ends))
        except ForbiddenError:
            config = {}  # the operator's right; the server itself refuses a batch that is too large
        black = np.zeros((1, *(size if size > 0 else 32 for size in signature.image_shape)), np.float32)
        wanted = OutputRequest(signature.score_output, signature.num_classes)
        what = f"{self._url}, asked for the class names of model {name!r}"
        answer = self._transport.infer(name, {signature.input_name: black}, [wanted], _left(ends)).get(signature.score_output)
        if answer is None or answer.dtype != object:
            raise service_error(ServerFailedError, what, "its answer ignores Triton's classification extension")
        with reading(what):
            class_names = class_names_from_answer(answer, signature.num_classes)
        with reading(f"{self._url}, asked for the configuration of model {name!r}"):
            max_batch_size, steps = int(config.get("max_batch_size", 0)), steps_from_config(config)
            preprocessing = preprocessing_from_config(config)
        return ModelInfo(
            name=name,
            platform=metadata.platform,
            input_name=signature.input_name,
            image_shape=signature.image_shape,
            outputs=tuple(output.name for output in metadata.outputs),
            max_batch_size=max_batch_size or None,
            class_names=class_names,
            steps=steps,
            preprocessing=preprocessing,
        )

    def _look_again(self, info: ModelInfo) -> ModelInfo:
        self._forget(info)
        return self.describe(info.name)

    def _forget(self, info: ModelInfo) -> None:
        """Forget what was known of a model, which may have been replaced by another, unless a thread has looked again meanwhile."""
        if self._known.get(info.name) is info:
            self._known.pop(info.name, None)
        if self._only_ensemble == info.name:
            self._only_ensemble = None

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError(f"this client of {self._url} is closed: make another, or call it within its `with` block")


def _checked_timeout(timeout_s: object) -> float:
    if not isinstance(timeout_s, (int, float, np.integer, np.floating)) or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InputError(f"timeout_s must be a positive number of seconds, at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s!r:.100}")
    return float(timeout_s)


def _checked_name(model: object) -> str | None:
    if model is not None and not isinstance(model, str):
        raise InputError(f"model must be the name of a model, or None for the only ensemble, got the {type(model).__name__} {model!r:.100}")
    return model


def _left(ends: float) -> float:
    """The time until then; where it is over, so little that a request ends as one whose time was up."""
    return max(ends - time.monotonic(), 0.001)
