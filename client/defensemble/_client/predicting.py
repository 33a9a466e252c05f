"""One call of `predict`: the images in one request, or in chunks that are sent at the same time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError, ModelNotFoundError, RequestRefusedError, ServerFailedError
from .._transport.base import OutputRequest, Outputs
from .._transport.error_mapping import call_context, service_error
from .images import image_from_input, images_from_input
from .lookup import ModelCache
from .model_info import ModelInfo, matches_model, requests_from_outputs
from .prediction import Prediction, join_outputs, non_finite_values, outputs_from_response, response_mismatch
from .replicas import Replica
from .runtime import Runtime
from .sending import Call, Sender, Stop

MAX_CHUNK_IMAGES = 64  # for a model that does not report its max_batch_size
_CHUNK_BYTES = 32 << 20  # Triton accepts HTTP bodies of 64 MB from 25.06 on
_MODEL_TRIES = 3


@dataclass(slots=True)  # frozen, it takes three times as long to create
class Request:
    """What a caller asks for in `predict`, without the images."""

    outputs: tuple[str, ...]
    model: str | None
    layout: str
    dtype: str
    resize: str | None
    request_id: str
    traceparent: str | None


@dataclass(slots=True)
class _Sent:
    """A request as it is sent to a server: the model, its outputs, and headers."""

    info: ModelInfo
    outputs: tuple[OutputRequest, ...]
    request_id: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Items:
    """Images of `predict_iter`, from a position on."""

    items: list[Any]
    first: int


class Predictor:
    """Classifies images on one server.

    Args:
        models: What is known of the models.
        sender: Sends the requests.
        runtime: The surroundings of the client.
        max_parallel: Chunks of one call that are sent at the same time.
    """

    def __init__(self, models: ModelCache, sender: Sender, runtime: Runtime, max_parallel: int) -> None:
        self._models = models
        self._sender = sender
        self._runtime = runtime
        self._max_parallel = max_parallel

    async def predict(self, call: Call, replica: Replica, images: Any, request: Request, headers: Mapping[str, str]) -> Prediction:
        """Classify images.

        Args:
            call: The call.
            replica: The server.
            images: The images, as the caller passed them.
            request: What to ask for.
            headers: Sent with each request.
        """
        info = await self._models.info(call, replica, request.model)
        if isinstance(images, np.ndarray) and images.ndim == 4 and not matches_model(images.shape, info, request.layout):
            info = await self._models.refresh(call, replica, info)
        if isinstance(images, np.ndarray):
            array = _read(images, info, request, call)
        else:
            array = await self._runtime.run(lambda: _read(images, info, request, call))
        sent = _Sent(info, requests_from_outputs(request.outputs, info), request.request_id, headers)
        try:
            responses = await self._infer(call, replica, sent, array)
        except (ModelNotFoundError, RequestRefusedError):
            self._models.invalidate(replica, info)  # the next call looks the model up again
            raise
        problem = _mismatch(responses, sent.outputs, info)
        if problem is not None:
            info = await self._models.refresh(call, replica, info)
            problem = _mismatch(responses, sent.outputs, info)
        received = {} if problem is not None else _received([response for _, response in responses], sent.outputs)
        if problem is not None or (problem := non_finite_values(received)) is not None:
            raise service_error(ServerFailedError, call_context(replica.url, "run model", info.name), problem)
        return Prediction(
            info.name,
            info.class_names,
            outputs_from_response(received),
            model_version=responses[0][1].model_version,
            request_id=request.request_id,
            latency_s=time.monotonic() - call.started,
            url=replica.url,
        )

    async def _infer(self, call: Call, replica: Replica, sent: _Sent, array: NDArray[np.float32]) -> list[tuple[int, Outputs]]:
        """Return the responses for all chunks, each with its number of images."""
        info = sent.info
        size = info.max_batch_size or replica.batch_limits.get(info.name, MAX_CHUNK_IMAGES)
        size = max(1, min(size, len(array), _CHUNK_BYTES * len(array) // array.nbytes))
        refusal: RequestRefusedError | None = None
        while True:
            try:
                if len(array) <= size:
                    return [(len(array), await self._infer_chunk(call, replica, sent, array, sent.request_id))]
                responses = await self._infer_chunks(call, replica, sent, array, size)
            except RequestRefusedError as error:
                refusal = refusal or error
                if info.max_batch_size is not None or size == 1:
                    raise refusal from refusal.__cause__
                size //= 2  # the largest batch is unknown: it may be smaller
            else:
                if refusal is not None:
                    replica.batch_limits[info.name] = size
                return responses

    async def _infer_chunks(
        self, call: Call, replica: Replica, sent: _Sent, array: NDArray[np.float32], size: int
    ) -> list[tuple[int, Outputs]]:
        version: int | None = None
        for _ in range(_MODEL_TRIES):
            responses = await self._infer_in_parallel(call, replica, sent, array, size, version)
            if len({_model_state(response) for _, response in responses}) == 1:
                return responses
            # The model was replaced or edited meanwhile: all again, by the newest version.
            versions = {response.model_version for _, response in responses}
            version = max((int(found) for found in versions if found.isdecimal()), default=None)
        reason = f"the model changed during the call, {_MODEL_TRIES} times: versions {', '.join(sorted(versions))}"
        raise service_error(ServerFailedError, call_context(replica.url, "run model", sent.info.name), reason)

    async def _infer_in_parallel(
        self, call: Call, replica: Replica, sent: _Sent, array: NDArray[np.float32], size: int, version: int | None
    ) -> list[tuple[int, Outputs]]:
        stop = Stop()
        branch = call.until(stop)

        async def chunks() -> AsyncGenerator[Coroutine[Any, Any, Outputs], None]:
            for start in range(0, len(array), size):
                chunk = array[start : start + size]
                yield self._infer_chunk(branch, replica, sent, chunk, f"{sent.request_id}/{start}", version=version)

        outputs = self._sender.in_order(chunks(), self._max_parallel)
        try:
            responses = [response async for response in outputs]
        finally:
            stop.is_set = True  # after a failure, the other chunks are not sent again
            await outputs.aclose()
        return [(min(size, len(array) - start), response) for start, response in zip(range(0, len(array), size), responses, strict=True)]

    def _infer_chunk(
        self,
        call: Call,
        replica: Replica,
        sent: _Sent,
        chunk: NDArray[np.float32],
        request_id: str,
        version: int | None = None,
    ) -> Coroutine[Any, Any, Outputs]:
        inputs = {sent.info.input_name: chunk}

        def infer(left_s: float) -> Any:
            return replica.transport.infer(
                sent.info.name, inputs, sent.outputs, left_s, version, request_id=request_id, headers=sent.headers
            )

        return self._sender.send(call, replica, infer)


def _read(images: Any, info: ModelInfo, request: Request, call: Call) -> NDArray[np.float32]:
    options: dict[str, Any] = {"layout": request.layout, "dtype": request.dtype, "resize": request.resize}
    if not isinstance(images, Items):
        return images_from_input(images, info, **options)
    arrays = []
    for number, item in enumerate(images.items, images.first):
        call.remaining_s()  # raises after the deadline
        arrays.append(image_from_input(item, info, **options, name=f"images[{number}]"))
    if len({array.shape for array in arrays}) > 1:
        raise InputError(
            f"images[{images.first}] to images[{images.first + len(arrays) - 1}] have several sizes; expected one size per batch: model "
            f"{info.name!r} takes any size, so that images keep theirs. Pass batch_size=1, or resize them."
        )
    return np.stack(arrays)


def _model_state(response: Outputs) -> tuple[str, frozenset[tuple[str, tuple[int, ...]]]]:
    """Return what distinguishes the states of a model: its version and, as an edit of an ensemble keeps that, its outputs' shapes."""
    return response.model_version, frozenset((name, value.shape[1:]) for name, value in response.items())


def _mismatch(responses: list[tuple[int, Outputs]], outputs: Sequence[OutputRequest], info: ModelInfo) -> str | None:
    for count, response in responses:
        problem = response_mismatch(response, outputs, count, info)
        if problem is not None:
            return problem
    return None


def _received(responses: list[Outputs], outputs: Sequence[OutputRequest]) -> Mapping[str, NDArray[Any]]:
    return join_outputs([{output.name: response[output.name] for output in outputs} for response in responses])
