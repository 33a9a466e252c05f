"""The blocking client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from .._coroutines import run_blocking
from .._transport.base import ModelStatistics, ServerMetadata, TlsFiles, Transport
from .._transport.factory import transport_from_url
from .calls import Calls, ServerHealth
from .connect import ClientBase, replicas_from_arguments
from .model_info import ModelInfo
from .prediction import Prediction
from .retries import RetryPolicy
from .runtime import BlockingRuntime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .images import Images, Picture


class Client(ClientBase):
    """Call the models of Triton, or of another server that speaks the KServe v2 protocol. Threads may share a client.

    Without a `model`, calls go to the only served ensemble, whether Triton runs it or it is one fused graph. The first call to a
    model looks up its shapes and class names, and a later call only does so if images or a response no longer match. If a model keeps its
    shapes and gets other class names, create a new client.

    With several URLs, each call goes to the server with the fewest requests of this client. A server that cannot be reached is left out
    until it responds again, and its calls go to the others.

    A forked child may keep using a client over HTTP, which then makes its own connections. gRPC does not survive a fork: calls in the child
    raise an error, so create a new client there.

    Args:
        url: The server's URL: `http://HOST:PORT`, `https://`, `grpc://` or `grpcs://`; or the URLs of several equal servers.
        model: The model to call by default; None for the only ensemble.
        timeout_s: Timeout of a call in seconds: for all its requests, retries, and the look-up of the model.
        retry: When failed requests are sent again; None for `RetryPolicy()`. `RetryPolicy(max_retries=0)` never does.
        max_parallel: Requests of one call that are sent at the same time if its images do not fit into one.
        tls: PEM files for `https://` and `grpcs://`; None for the default authorities and no client certificate.
        compression: `gzip` to compress requests and responses; None for neither.
        admin_key: The server's admin key, for editing what it serves; predictions need none. It is sent only with calls of the repository
            API and for configurations.
        transport: Used in place of the network, such as a `FakeTransport`; one, or several. `url` is then ignored.

    Raises:
        InputError: An argument is invalid, such as a URL that is not the URL of a server.

    Example:
        >>> with Client("http://localhost:8000") as client:
        ...     prediction = client.predict(images)  # float32 (N, C, H, W) in [0, 1]
        >>> prediction.labels, prediction.probabilities
    """

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry: RetryPolicy | None = None,
        max_parallel: int = 4,
        tls: TlsFiles | None = None,
        compression: str | None = None,
        admin_key: str | None = None,
        transport: Transport | Sequence[Transport] | None = None,
    ) -> None:
        replicas = replicas_from_arguments(
            url, transport, transport_from_url, tls=tls, compression=compression, admin_key=admin_key, may_be_async=False
        )
        super().__init__(Calls(replicas, BlockingRuntime(), model, timeout_s, retry, max_parallel))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. May be called twice."""
        run_blocking(self._calls.close())

    @property
    def transport(self) -> Transport:
        """The transport of the first server. It is closed with the client."""
        transport: Transport = self._calls.replicas.replicas[0].transport
        return transport

    def predict(
        self,
        images: Images,
        outputs: Sequence[str] = ("probabilities",),
        model: str | None = None,
        *,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        dtype: Literal["float32", "uint8"] = "float32",
        resize: Literal["crop", "squash"] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> Prediction:
        """Classify images.

        Images are an array, float32 (N, C, H, W) in [0, 1], or pictures: a PIL image, a path, the bytes of an image file, or a list of
        these, which are read as in training and brought to the model's size. More images than the model accepts in one request are sent in
        several, at the same time, to the same server and version.

        Args:
            images: The images.
            outputs: Some of probabilities, member_probabilities, entropy and mutual_information; the server sends only these. A single
                network, whose output is `logits`, has probabilities (their softmax) and entropy.
            model: The model to call; None for the client's own.
            layout: `NHWC` if the array is (N, H, W, C).
            dtype: `uint8` if the array has integers from 0 to 255, which are divided by 255.
            resize: How pictures are brought to the model's size: `crop` or `squash`; None for the way that the model records.
            timeout_s: Timeout of the whole call in seconds; None for the client's.
            request_id: Identifies the call in the server's log; None for a new one.
            traceparent: W3C trace context of the caller; None for the current span of OpenTelemetry, if there is one.

        Raises:
            InputError: The model does not accept the images or outputs, or no model is named and several ensembles are served.
            OSError: The file of a picture cannot be read.
            ServiceError: The server could not be reached, did not respond, or sent an invalid response, such as NaN; see its subclasses.
            OSError: An image file cannot be read.

        Example:
            >>> prediction = client.predict(images, outputs=("probabilities", "mutual_information"))
            >>> client.predict(["a.png", "b.jpg"], timeout_s=5).labels
            ['cat', 'dog']
        """
        request = self._calls.request(outputs, model, layout, dtype, resize, request_id, traceparent)
        return run_blocking(self._calls.predict(images, request, timeout_s))

    def predict_iter(
        self,
        images: Iterable[NDArray[Any] | Picture],
        outputs: Sequence[str] = ("probabilities",),
        model: str | None = None,
        *,
        batch_size: int | None = None,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        dtype: Literal["float32", "uint8"] = "float32",
        resize: Literal["crop", "squash"] | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Prediction]:
        """Classify images one after another as they come, and yield a prediction of one image for each, in order.

        At most `max_parallel` batches are pulled ahead of the caller, so that memory stays bounded however many images there are.

        Args:
            images: The images: each an array (C, H, W), or a picture, as in `predict`.
            outputs: The outputs to request.
            model: The model to call; None for the client's own.
            batch_size: Images per request; None for what the model accepts, at most 64.
            layout: `NHWC` if the arrays are (H, W, C).
            dtype: `uint8` if the arrays have integers from 0 to 255.
            resize: How pictures are brought to the model's size; see `predict`.
            timeout_s: Timeout of each batch in seconds; None for the client's.

        Raises:
            InputError: The model does not accept an image, or an argument is invalid.
            OSError: The file of a picture cannot be read.
            ServiceError: The server could not be reached, did not respond, or sent an invalid response.
            OSError: An image file cannot be read.

        Example:
            >>> for path, prediction in zip(paths, client.predict_iter(paths)):
            ...     print(path, prediction.labels[0])
        """
        request = self._calls.request(outputs, model, layout, dtype, resize)
        return _iterate(self._calls.predict_iter(images, request, batch_size, timeout_s))

    def describe(self, model: str | None = None) -> ModelInfo:
        """Return the inputs, outputs and class names of a model. The server is asked once, and the client keeps the result.

        Args:
            model: Name of the model; None for the client's own.

        Raises:
            InputError: The model does not classify images, or no model is named and several ensembles are served.
            ServiceError: The server could not be reached, or did not respond; see its subclasses.
        """
        return run_blocking(self._calls.describe(model))

    def labels(self, model: str | None = None) -> tuple[str, ...]:
        """Return the class names of a model in index order; the indices as strings if it has no names.

        Args:
            model: Name of the model; None for the client's own.

        Raises:
            InputError: The model does not classify images, or no model is named and several ensembles are served.
            ServiceError: The server could not be reached, or did not respond.
        """
        return self.describe(model).class_names

    def models(self) -> list[str]:
        """Return the names of all loaded models, sorted. Members and averaging models of ensembles are included.

        Raises:
            ServiceError: The server could not be reached, did not respond, or cannot list its models.
        """
        return run_blocking(self._calls.models())

    def classifiers(self) -> list[ModelInfo]:
        """Return all models that classify images: ensembles first, then the others, each sorted by name.

        Raises:
            ServiceError: The server could not be reached, or did not respond.
        """
        return run_blocking(self._calls.classifiers())

    def server_metadata(self) -> ServerMetadata:
        """Return a server's name and version.

        Raises:
            ServiceError: The server could not be reached, or did not respond.
        """
        return run_blocking(self._calls.server_metadata())

    def statistics(self) -> list[ModelStatistics]:
        """Return the counters of each version of each loaded model, of each server.

        Raises:
            RequestRefusedError: A server does not report statistics.
            ServiceError: A server could not be reached, or did not respond.
        """
        return run_blocking(self._calls.statistics())

    def health(self) -> list[ServerHealth]:
        """Return how each server is. A server that does not respond is no error: its entry has the reason."""
        return run_blocking(self._calls.health())

    def wait_ready(self, deadline_s: float = 60.0, model: str | None = None) -> None:
        """Wait until a server responds to a real inference (one black image); its own readiness report can be premature.

        Args:
            deadline_s: Seconds to wait.
            model: The model to call; None for the client's own.

        Raises:
            DeadlineExceededError: There was no inference in time; the text and the cause are the last error.
            ForbiddenError: The server does not allow the call, and waiting would not help.
            RequestRefusedError: The server rejects the inference as invalid.
            InputError: The model does not classify images, or no model is named and several ensembles are served.
        """
        run_blocking(self._calls.wait_ready(deadline_s, model))


def _iterate(predictions: AsyncGenerator[Prediction, None]) -> Iterator[Prediction]:
    try:
        while True:
            try:
                prediction = run_blocking(predictions.__anext__())
            except StopAsyncIteration:
                return
            yield prediction
    finally:
        run_blocking(predictions.aclose())
