"""The client: call the models of one server."""

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
from .._transport.error_mapping import call_context, protocol_errors, service_error
from .._transport.factory import transport_from_url
from .model_info import (
    ModelInfo,
    check_images,
    class_names_from_response,
    is_ensemble_signature,
    matches_model,
    names_from_outputs,
    preprocessing_from_config,
    requests_from_outputs,
    signature_from_metadata,
    steps_from_config,
)
from .prediction import Prediction, non_finite_values, outputs_from_response, response_mismatch

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_LONGEST_TIMEOUT_S = 1e6  # what sockets and gRPC take without overflow


class Client:
    """Call the models of a Triton server. Threads may share a client.

    Without a `model`, calls go to the only served ensemble, whether Triton runs it or it is one fused graph. The first call to a
    model looks up its shapes and class names, and a later call only does so if images or a response no longer match. If a model keeps its
    shapes and gets other class names, create a new client.

    A forked child may keep using a client over HTTP, which then makes its own connections. gRPC does not survive a fork: calls in the child
    raise an error, so create a new client there.

    Args:
        url: The server's URL: `http://HOST:PORT`, `https://`, `grpc://` or `grpcs://`.
        model: The model to call by default; None for the only ensemble.
        timeout_s: Timeout of a call, in seconds. Looking a model up, before or after a call, may take as long again.
        transport: Used in place of the network, such as a `FakeTransport`.
        admin_key: The server's admin key, for editing what it serves; predictions need none. It is sent only with calls of the repository
            API and for configurations, through `transport`.

    Raises:
        InputError: The URL is not the URL of a server, the model's name is not a string, the timeout is not positive, or the admin key is
            malformed or passed together with a transport.

    Example:
        >>> with Client("grpc://localhost:8001") as client:
        ...     prediction = client.predict(images)  # float32 (N, C, H, W) in [0, 1]
        >>> prediction.labels, prediction.probabilities
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
            raise InputError("got both transport and admin_key: pass the key to the transport, GrpcTransport(url, admin_key=...)")
        self._transport = transport_from_url(url, admin_key) if transport is None else transport
        self._url = self._transport.url
        self._model = _check_name(model)
        self._timeout_s = _check_timeout(timeout_s)
        self._is_closed = False
        self._only_ensemble: str | None = None
        self._info_by_name: dict[str, ModelInfo] = {}

    def __repr__(self) -> str:
        return f"Client({self._url!r}, model={self._model!r}, timeout_s={self._timeout_s:g})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. May be called twice."""
        self._is_closed = True
        self._transport.close()

    @property
    def url(self) -> str:
        """The server's URL."""
        return self._url

    @property
    def transport(self) -> Transport:
        """The transport of this client. It is closed with the client."""
        return self._transport

    @property
    def timeout_s(self) -> float:
        """Timeout of a call, in seconds."""
        return self._timeout_s

    def predict(self, images: NDArray[np.float32], outputs: Sequence[str] = ("probabilities",), model: str | None = None) -> Prediction:
        """Classify images.

        Args:
            images: float32 (N, C, H, W) in [0, 1], N at most the model's largest batch.
            outputs: Some of probabilities, member_probabilities, entropy and mutual_information; the server sends only these. A single
                network, whose output is `logits`, has probabilities (their softmax) and entropy.
            model: The model to call; None for the client's own.

        Raises:
            InputError: The model does not accept the images or outputs, or no model is named and several ensembles are served.
            ServiceError: The server could not be reached, did not respond, or sent an invalid response, such as NaN; see its subclasses.

        Example:
            >>> prediction = client.predict(images, outputs=("probabilities", "mutual_information"))
        """
        names = names_from_outputs(outputs)
        info = self.describe(model)
        if not matches_model(images, info):
            info = self._refresh(info)
        checked = check_images(images, info)
        requests = requests_from_outputs(names, info)
        try:
            response = self._transport.infer(info.name, {info.input_name: checked}, requests, self._timeout_s)
        except (ModelNotFoundError, RequestRefusedError):
            self._invalidate(info)  # the next call looks the model up again
            raise
        received = {output.name: response[output.name] for output in requests if output.name in response}
        problem = response_mismatch(received, requests, len(checked), info)
        if problem is not None:
            info = self._refresh(info)
            problem = response_mismatch(received, requests, len(checked), info)
        if problem is not None or (problem := non_finite_values(received)) is not None:
            raise service_error(ServerFailedError, call_context(self._url, "run model", info.name), problem)
        return Prediction(info.name, info.class_names, outputs_from_response(received))

    def describe(self, model: str | None = None) -> ModelInfo:
        """Return the inputs, outputs and class names of a model. The server is asked once, and the client keeps the result.

        Args:
            model: Name of the model; None for the client's own.

        Raises:
            InputError: The model does not classify images, or no model is named and several ensembles are served.
            ServiceError: The server could not be reached, or did not respond; see its subclasses.
        """
        self._check_open()
        name = _check_name(model) or self._model or self._only_ensemble
        info = self._info_by_name.get(name or "")
        if info is None:
            # Threads that start together each look the model up, which costs one more small request per thread.
            deadline = time.monotonic() + self._timeout_s
            name = name or self._find_ensemble(deadline)
            info = self._info_by_name.get(name) or self._fetch_info(name, deadline)
            self._info_by_name[name] = info
        return info

    def models(self) -> list[str]:
        """Return the names of all loaded models, sorted. Members and averaging models of ensembles are included.

        Raises:
            ServiceError: The server could not be reached, or did not respond.
        """
        self._check_open()
        return self._transport.models(self._timeout_s)

    def classifiers(self) -> list[ModelInfo]:
        """Return all models that classify images: ensembles first, then the others, each sorted by name.

        Raises:
            ServiceError: The server could not be reached, or did not respond.
        """
        classifiers = []
        for name in self.models():
            try:
                classifiers.append(self.describe(name))
            except InputError:  # an averaging model, or another that takes no images
                continue
        return sorted(classifiers, key=lambda info: (not info.is_ensemble, info.name))

    def server_metadata(self) -> ServerMetadata:
        """Return the server's name and version.

        Raises:
            ServiceError: The server could not be reached, or did not respond.
        """
        self._check_open()
        return self._transport.server_metadata(self._timeout_s)

    def wait_ready(self, deadline_s: float = 60.0, model: str | None = None) -> None:
        """Wait until the server responds to a real inference (one black image); its own readiness report can be premature.

        Args:
            deadline_s: Seconds to wait.
            model: The model to call; None for the client's own.

        Raises:
            DeadlineExceededError: There was no inference in time; the text and the cause are the last error.
            ForbiddenError: The server does not allow the call, and waiting would not help.
            InputError: The model does not classify images, or no model is named and several ensembles are served.
        """
        self._check_open()
        _check_name(model)
        deadline = time.monotonic() + deadline_s
        pause_s = _FIRST_PAUSE_S
        last_error: ServiceError | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                call_deadline = time.monotonic() + min(left_s, self._timeout_s)
                name = model or self._model or self._find_ensemble(call_deadline)
                self._info_by_name[name] = self._fetch_info(name, call_deadline)
                return
            except (ForbiddenError, RequestRefusedError):
                raise
            except ServiceError as error:
                last_error = error
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise DeadlineExceededError(f"{self._url} was not ready within {deadline_s:g} s; the last error: {last_error}") from last_error

    def _find_ensemble(self, deadline: float) -> str:
        models = self._transport.models(_remaining_s(deadline))
        ensembles = []
        for name in models:
            try:
                metadata = self._transport.model_metadata(name, _remaining_s(deadline))
                tensors = ([tensor.name for tensor in kind] for kind in (metadata.inputs, metadata.outputs))
                if is_ensemble_signature(metadata.platform, *tensors):
                    ensembles.append(name)
            except (ModelNotFoundError, NotReadyError):  # unloaded since it was listed
                continue
        if len(ensembles) > 1:
            raise InputError(
                f"{self._url} serves {len(ensembles)} ensembles, {', '.join(ensembles)}: choose one with Client(url, model=...) or "
                "--model NAME"
            )
        if not ensembles:
            served = f"only {', '.join(models)}" if models else "and no model at all"
            raise ModelNotFoundError(
                f"{self._url} serves no ensemble, {served}: choose a model with Client(url, model=...) or --model NAME, or load an ensemble"
            )
        self._only_ensemble = ensembles[0]
        return ensembles[0]

    def _fetch_info(self, name: str, deadline: float) -> ModelInfo:
        try:
            metadata = self._transport.model_metadata(name, _remaining_s(deadline))
        except ModelNotFoundError as error:
            served = ", ".join(self._transport.models(_remaining_s(deadline))) or "none"
            raise ModelNotFoundError(f"{self._url} has no model {name!r}; it serves {served}") from error
        signature = signature_from_metadata(metadata)
        try:
            config = self._transport.model_config(name, _remaining_s(deadline))
        except ForbiddenError:
            config = {}  # an operator may restrict it; the server itself rejects a batch that is too large
        black = np.zeros((1, *(size if size > 0 else 32 for size in signature.image_shape)), np.float32)
        class_request = OutputRequest(signature.score_output, signature.num_classes)
        context = call_context(self._url, "read the class names of model", name)
        outputs = self._transport.infer(name, {signature.input_name: black}, [class_request], _remaining_s(deadline))
        classes = outputs.get(signature.score_output)
        if classes is None or classes.dtype != object:
            raise service_error(ServerFailedError, context, "the response ignores Triton's classification extension")
        with protocol_errors(context):
            class_names = class_names_from_response(classes, signature.num_classes)
        with protocol_errors(call_context(self._url, "read the configuration of model", name)):
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

    def _refresh(self, info: ModelInfo) -> ModelInfo:
        self._invalidate(info)
        return self.describe(info.name)

    def _invalidate(self, info: ModelInfo) -> None:
        """Drop the cached information of a model, which may have been replaced, unless another thread has refreshed it meanwhile."""
        if self._info_by_name.get(info.name) is info:
            self._info_by_name.pop(info.name, None)
        if self._only_ensemble == info.name:
            self._only_ensemble = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientClosedError(f"this client of {self._url} is closed: create another, or call it within its `with` block")


def _check_timeout(timeout_s: object) -> float:
    if not isinstance(timeout_s, (int, float, np.integer, np.floating)) or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
        raise InputError(f"timeout_s must be a positive number of seconds, at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s!r:.100}")
    return float(timeout_s)


def _check_name(model: object) -> str | None:
    if model is not None and not isinstance(model, str):
        raise InputError(f"model must be the name of a model, or None for the only ensemble; got the {type(model).__name__} {model!r:.100}")
    return model


def _remaining_s(deadline: float) -> float:
    """Return the seconds until the deadline; after it, so few that a request times out."""
    return max(deadline - time.monotonic(), 0.001)
