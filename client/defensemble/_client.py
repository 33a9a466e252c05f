"""The client: calls the models of one server."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from defensemble._exceptions import (
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
from defensemble._model import (
    ModelInfo,
    check_images,
    class_names_from_answer,
    requests_from_outputs,
    signature_from_metadata,
    steps_from_config,
)
from defensemble._prediction import Prediction, received_from_answer
from defensemble._translate import service_error
from defensemble._transport import OutputRequest, ServerMetadata, Transport, transport_from_url

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_LONGEST_TIMEOUT_S = 1e6  # what sockets and gRPC take without overflow


class Client:
    """Calls the models of one Triton server, at `grpc://HOST:PORT`, `grpcs://`, `http://` or `https://`; threads may share it.

    Without a `model`, the only ensemble that is served is called, looked up when it is first needed. No call takes longer than `timeout_s`,
    except the first to a model, which also asks what it takes and what its classes are called (three small requests, each within
    `timeout_s`). Another `transport`, such as a `FakeTransport`, takes the place of the network.

    Raises:
        InputError: The URL is not a server's, or the timeout is not positive.
    """

    def __init__(self, url: str, model: str | None = None, *, timeout_s: float = 60.0, transport: Transport | None = None) -> None:
        if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
            raise InputError(f"timeout_s must be a positive number of seconds, at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s!r}")
        self._transport = transport_from_url(url) if transport is None else transport
        self._url = self._transport.url
        self._model = model
        self._timeout_s = float(timeout_s)
        self._closed = False
        self._lock = threading.Lock()
        self._only_ensemble: str | None = None
        self._known: dict[str, ModelInfo] = {}

    def __repr__(self) -> str:
        return f"Client({self._url!r}, model={self._model!r}, timeout_s={self._timeout_s:g})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connections; may be called twice."""
        self._closed = True
        self._transport.close()

    @property
    def url(self) -> str:
        """Where the server is."""
        return self._url

    def predict(self, images: NDArray[np.float32], outputs: Sequence[str] = ("probabilities",), model: str | None = None) -> Prediction:
        """Asks a model about images: float32, (N, C, H, W), in [0, 1], N up to the model's largest batch.

        `outputs` are some of probabilities, member_probabilities, entropy and mutual_information; only these are computed and sent.
        A single network, whose output is `logits`, has probabilities (their softmax) and entropy.

        Raises:
            InputError: Images or outputs are not what the model takes, or no model was named and several ensembles are served.
            ServiceError: The server could not be reached, or did not answer; its subclasses tell why.
        """
        info = self.describe(model)
        checked = check_images(images, info)
        asked = requests_from_outputs(outputs if isinstance(outputs, (tuple, str)) else tuple(outputs), info)
        try:
            answer = self._transport.infer(info.name, {info.input_name: checked}, asked, self._timeout_s)
        except (ModelNotFoundError, RequestRefusedError):
            self._forget(info.name)  # it may have been replaced by another: the next call looks again
            raise
        for output in asked:
            value = answer.get(output.name)
            if value is None or len(value) != len(checked):
                got = "nothing" if value is None else f"{len(value)} rows"
                told = f"it answered {got} for output {output.name!r} and {len(checked)} images"
                raise service_error(ServerFailedError, f"{self._url}, asked to run model {info.name!r}", told)
        scores = answer.get(info.score_output)
        if scores is not None and scores.shape[1] != len(info.class_names):
            self._forget(info.name)  # its classes have changed since it was looked up
            info = self.describe(info.name)
        return Prediction(info.name, info.class_names, received_from_answer({output.name: answer[output.name] for output in asked}))

    def describe(self, model: str | None = None) -> ModelInfo:
        """What a model takes and gives; asked of the server once.

        Raises:
            InputError: The model does not classify images, or none was named and several ensembles are served.
            ServiceError: The server could not be reached, or did not answer; its subclasses tell why.
        """
        self._check_open()
        name = model or self._model or self._only_ensemble or self._find_ensemble()
        known = self._known.get(name)
        if known is None:
            # The lock keeps threads that start together from asking the same things; a known model never waits for it.
            with self._lock:
                known = self._known.get(name)
                if known is None:
                    known = self._ask_about(name, self._timeout_s)
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
            ForbiddenError: The server does not let this client call it, which waiting cannot mend.
            InputError: The model does not classify images, or none was named and several ensembles are served.
        """
        self._check_open()
        deadline = time.monotonic() + deadline_s
        pause_s = _FIRST_PAUSE_S
        last: ServiceError | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                name = model or self._model or self._find_ensemble(min(left, self._timeout_s))
                self._known[name] = self._ask_about(name, min(max(deadline - time.monotonic(), 0.001), self._timeout_s))
                return
            except (ForbiddenError, RequestRefusedError):
                raise
            except ServiceError as error:
                last = error
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise DeadlineExceededError(f"{self._url} was not ready within {deadline_s:g} s; last seen: {last}") from last

    def _find_ensemble(self, timeout_s: float | None = None) -> str:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        models = self._transport.models(timeout_s)
        ensembles = []
        for name in models:
            try:
                if self._transport.model_metadata(name, timeout_s).platform == "ensemble":
                    ensembles.append(name)
            except (ModelNotFoundError, NotReadyError):  # unloaded since it was listed
                continue
        if len(ensembles) > 1:
            raise InputError(f"{self._url} serves {len(ensembles)} ensembles, {', '.join(ensembles)}: name one, Client(url, model=...)")
        if not ensembles:
            served = f"only {', '.join(models)}" if models else "no model at all"
            raise ModelNotFoundError(f"{self._url} serves no ensemble, {served}: name a model, Client(url, model=...), or load an ensemble")
        self._only_ensemble = ensembles[0]
        return ensembles[0]

    def _ask_about(self, name: str, timeout_s: float) -> ModelInfo:
        try:
            metadata = self._transport.model_metadata(name, timeout_s)
        except ModelNotFoundError as error:
            raise ModelNotFoundError(
                f"{self._url} serves no model {name!r}, only {', '.join(self._transport.models(timeout_s))}"
            ) from error
        signature = signature_from_metadata(metadata)
        try:
            config = self._transport.model_config(name, timeout_s)
        except ForbiddenError:
            config = {}  # the operator's right; the server itself refuses a batch that is too large
        black = np.zeros((1, *(size if size > 0 else 32 for size in signature.image_shape)), np.float32)
        wanted = OutputRequest(signature.score_output, signature.num_classes)
        what = f"{self._url}, asked for the class names of model {name!r}"
        answer = self._transport.infer(name, {signature.input_name: black}, [wanted], timeout_s).get(signature.score_output)
        if answer is None or answer.dtype != object:
            raise service_error(ServerFailedError, what, "its answer ignores Triton's classification extension")
        return ModelInfo(
            name=name,
            platform=metadata.platform,
            input_name=signature.input_name,
            image_shape=signature.image_shape,
            outputs=tuple(output.name for output in metadata.outputs),
            max_batch_size=int(config.get("max_batch_size", 0)) or None,
            class_names=class_names_from_answer(answer, signature.num_classes),
            steps=steps_from_config(config),
        )

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)
            if self._only_ensemble == name:
                self._only_ensemble = None

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosedError(f"this client of {self._url} is closed: make another, or call it within its `with` block")
