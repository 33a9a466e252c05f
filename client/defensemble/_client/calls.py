"""What the blocking and the asynchronous client have in common, as coroutines."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._exceptions import (
    DeadlineExceededError,
    ForbiddenError,
    InputError,
    ModelNotFoundError,
    RequestRefusedError,
    ServiceError,
)
from .._transport.base import ModelStatistics, OutputRequest, Outputs, ServerMetadata
from .checks import check_count, check_name, check_request_id, check_timeout
from .lookup import ModelCache, find_ensemble, look_up, model_config, served_models
from .model_info import ModelInfo, names_from_outputs
from .predicting import MAX_CHUNK_IMAGES, Items, Predictor, Request
from .prediction import Prediction
from .replicas import Counters, Replica, ReplicaSet
from .retries import RetryPolicy
from .runtime import Runtime
from .sending import Call, Sender, Stop
from .tracing import trace_headers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5


@dataclass(frozen=True)
class ServerHealth:
    """How a server of a client is.

    Attributes:
        url: The server's URL.
        is_live: Whether it reports that it is alive.
        is_ready: Whether it reports that it is ready. `wait_ready` is stricter: it classifies an image.
        name: The server's name, such as `triton`; empty if it did not respond.
        version: The server's version; empty if it did not respond.
        error: Why it did not respond; None if it did.
        pending: Requests of this client that are under way.
        is_ejected: Whether this client avoids the server because it failed.

    Example:
        >>> [server.url for server in client.health() if not server.is_ready]
    """

    url: str
    is_live: bool
    is_ready: bool
    name: str
    version: str
    error: ServiceError | None
    pending: int
    is_ejected: bool


class Calls:
    """The calls of a client.

    Attributes:
        url: The servers' URLs, for messages.

    Args:
        replicas: The servers.
        runtime: The surroundings of the client.
        model: The model to call by default; None for the only ensemble.
        timeout_s: Timeout of a call in seconds.
        policy: When requests are sent again.
        max_parallel: Chunks of one call that are sent at the same time.

    Raises:
        InputError: An argument is invalid.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        runtime: Runtime,
        model: str | None,
        timeout_s: float,
        policy: RetryPolicy | None,
        max_parallel: int,
    ) -> None:
        policy = RetryPolicy() if policy is None else policy
        if not isinstance(policy, RetryPolicy):
            raise InputError(f"retry must be a RetryPolicy or None, got the {type(policy).__name__} {policy!r:.100}")
        self.model = check_name(model)
        self.timeout_s = check_timeout(timeout_s)
        self.max_parallel = check_count(max_parallel, "max_parallel")
        self.replicas = ReplicaSet(replicas, policy)
        self.url = ", ".join(replica.url for replica in replicas)
        self._runtime = runtime
        self._sender = Sender(self.replicas, policy, runtime)
        self._models = ModelCache(self._sender, self.model)
        self._predictor = Predictor(self._models, self._sender, runtime, self.max_parallel)
        self._id_prefix = os.urandom(4).hex()
        self._ids = itertools.count(1)

    @property
    def counters(self) -> Counters:
        """What the client has done."""
        return self.replicas.counters

    async def close(self) -> None:
        """Close the connections."""
        await self._sender.close()

    def request(
        self,
        outputs: Sequence[str],
        model: str | None,
        layout: str,
        dtype: str,
        resize: str | None,
        request_id: str | None = None,
        traceparent: str | None = None,
    ) -> Request:
        """Check the arguments of `predict` that do not depend on the model.

        Raises:
            InputError: An argument is invalid.
        """
        names, name = names_from_outputs(outputs), check_name(model)
        identifier = f"{self._id_prefix}-{os.getpid():x}-{next(self._ids)}" if request_id is None else check_request_id(request_id)
        return Request(names, name, layout, dtype, resize, identifier, traceparent)

    async def predict(self, images: Any, request: Request, timeout_s: float | None, stop: Stop | None = None) -> Prediction:
        """Classify images.

        Args:
            images: The images.
            request: What to ask for.
            timeout_s: Timeout of the whole call; None for that of the client.
            stop: Ends the call early.
        """
        call = self._call(timeout_s, stop=stop)
        with trace_headers("predict", request.model or self.model, self.url, request.traceparent) as headers:
            prediction = await self._sender.anywhere(call, lambda replica: self._predictor.predict(call, replica, images, request, headers))
        self.replicas.count_call(len(prediction))
        return prediction

    async def predict_iter(
        self, images: Iterable[Any] | AsyncIterable[Any], request: Request, batch_size: int | None, timeout_s: float | None
    ) -> AsyncGenerator[Prediction, None]:
        """Classify images as they come, and yield a prediction for each, in order.

        Args:
            images: The images, each as `predict` accepts one.
            request: What to ask for.
            batch_size: Images per request; None for the largest that the model accepts, at most 64.
            timeout_s: Timeout of each batch, and of the look-up of the model before the first.
        """
        size = None if batch_size is None else check_count(batch_size, "batch_size")
        if size is None:
            size = min((await self.describe(request.model, timeout_s)).max_batch_size or MAX_CHUNK_IMAGES, MAX_CHUNK_IMAGES)
        stop = Stop()

        async def started() -> AsyncGenerator[Coroutine[Any, Any, Prediction], None]:
            first = 0
            async for batch in _batches(images, size):
                part = replace(request, request_id=f"{request.request_id}/{first}")
                yield self.predict(Items(batch, first), part, timeout_s, stop)
                first += len(batch)

        predictions = self._sender.in_order(started(), self.max_parallel)
        try:
            async for prediction in predictions:
                for single in prediction:
                    yield single
        finally:
            stop.is_set = True
            await predictions.aclose()

    async def describe(self, model: str | None = None, timeout_s: float | None = None) -> ModelInfo:
        """Return what a model accepts and returns.

        Args:
            model: Name of the model; None for that of the client.
            timeout_s: Timeout of the call; None for that of the client.
        """
        name = check_name(model)
        call = self._call(timeout_s)
        return await self._sender.anywhere(call, lambda replica: self._models.info(call, replica, name))

    async def infer(self, info: ModelInfo, images: NDArray[np.float32], outputs: Sequence[OutputRequest], request_id: str) -> Outputs:
        """Run a model once, and return its outputs unchecked.

        Args:
            info: The model.
            images: float32 (N, C, H, W), at most as many as it accepts.
            outputs: The outputs to request.
            request_id: Sent with the request.
        """
        call, inputs = self._call(None), {info.input_name: images}

        async def send(replica: Replica) -> Outputs:
            infer = replica.transport.infer
            response: Outputs = await self._sender.send(
                call, replica, lambda left_s: infer(info.name, inputs, outputs, left_s, request_id=request_id)
            )
            return response

        return await self._sender.anywhere(call, send)

    async def config(self, model: str) -> dict[str, Any]:
        """Return the configuration of a model; empty if the operator restricts it, or the server has none."""
        call = self._call(None)
        return await self._sender.anywhere(call, lambda replica: model_config(self._sender, call, replica, model)) or {}

    async def models(self) -> list[str]:
        """Return the names of the loaded models."""
        call = self._call(None)
        return await self._sender.anywhere(call, lambda replica: served_models(self._sender, call, replica))

    async def classifiers(self) -> list[ModelInfo]:
        """Return all models of a server that classify images."""
        call = self._call(None)

        async def find(replica: Replica) -> list[ModelInfo]:
            found = []
            for name in await served_models(self._sender, call, replica):
                with suppress(InputError, ModelNotFoundError):  # it takes no images, or was unloaded since it was listed
                    found.append(await self._models.info(call, replica, name))
            return sorted(found, key=lambda info: (not info.is_ensemble, info.name))

        return await self._sender.anywhere(call, find)

    async def server_metadata(self) -> ServerMetadata:
        """Return name and version of a server."""
        call = self._call(None)
        return await self._sender.anywhere(call, lambda replica: self._sender.send(call, replica, replica.transport.server_metadata))

    async def statistics(self) -> list[ModelStatistics]:
        """Return the counters of the loaded models of each server."""
        call = self._call(None, is_bound=True)
        found: list[ModelStatistics] = []
        for replica in self.replicas.replicas:
            try:
                entries = await self._sender.send(call, replica, replica.transport.statistics)
            except (ModelNotFoundError, RequestRefusedError) as error:
                raise RequestRefusedError(f"{replica.url} does not report statistics: it is not Triton, or restricts them") from error
            found += [replace(entry, url=replica.url) for entry in entries]
        return found

    async def health(self) -> list[ServerHealth]:
        """Return how each server is."""
        call = self._call(None, max_retries=0, is_bound=True)
        replicas = self.replicas.replicas

        async def checks() -> AsyncGenerator[Coroutine[Any, Any, ServerHealth], None]:
            for replica in replicas:
                yield self._health_of(call, replica)

        async with aclosing(self._sender.in_order(checks(), len(replicas))) as results:
            return [health async for health in results]

    async def wait_ready(self, deadline_s: float, model: str | None) -> None:
        """Wait until a server responds to an inference."""
        self._sender.check_open()
        name = check_name(model)
        seconds = 0.0 if deadline_s == 0 else check_timeout(deadline_s, "deadline_s")  # 0: the deadline has passed
        deadline = time.monotonic() + seconds
        pause_s = _FIRST_PAUSE_S
        last_error: ServiceError | None = None
        while (left_s := deadline - time.monotonic()) > 0:
            for replica in self.replicas.replicas:
                call = self._call(min(left_s / len(self.replicas.replicas), self.timeout_s), max_retries=0, is_bound=True)
                try:
                    found = name or self.model or await find_ensemble(self._sender, call, replica)
                    replica.info_by_name[found] = await look_up(self._sender, call, replica, found)
                    return
                except (ForbiddenError, RequestRefusedError):
                    raise
                except ServiceError as error:
                    last_error = error
            await self._runtime.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise DeadlineExceededError(f"{self.url} was not ready within {deadline_s:g} s; the last error: {last_error}") from last_error

    def _call(self, timeout_s: float | None, *, max_retries: int | None = None, stop: Stop | None = None, is_bound: bool = False) -> Call:
        seconds = self.timeout_s if timeout_s is None else check_timeout(timeout_s)
        return self._sender.call(seconds, max_retries=max_retries, stop=stop, is_bound=is_bound)

    async def _health_of(self, call: Call, replica: Replica) -> ServerHealth:
        is_live = is_ready = False
        metadata, error = ServerMetadata("", ""), None
        try:
            is_live = await self._sender.send(call, replica, replica.transport.live)
            is_ready = await self._sender.send(call, replica, replica.transport.ready)
            metadata = await self._sender.send(call, replica, replica.transport.server_metadata)
        except ServiceError as raised:
            error = raised
        return ServerHealth(replica.url, is_live, is_ready, metadata.name, metadata.version, error, replica.pending, replica.is_ejected)


async def _batches(images: Iterable[Any] | AsyncIterable[Any], size: int) -> AsyncIterator[list[Any]]:
    batch: list[Any] = []
    async for image in _each(images):
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


async def _each(images: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
        return
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise InputError(
            f"predict_iter expects an iterable of images, got the {type(images).__name__} {images!r:.100}; for one, call predict"
        )
    for image in images:
        yield image
