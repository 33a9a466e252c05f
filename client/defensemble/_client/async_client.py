"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from .._transport.base import AsyncTransport, ModelStatistics, ServerMetadata, TlsFiles, Transport
from .._transport.factory import async_transport_from_url
from .asyncio_runtime import AsyncioRuntime
from .calls import Calls, ServerHealth
from .connect import ClientBase, replicas_from_arguments
from .model_info import ModelInfo
from .prediction import Prediction
from .retries import RetryPolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .images import Images, Picture


class AsyncClient(ClientBase):
    """Call the models of a server from an event loop: `Client` as coroutines, with the same arguments, results and errors.

    Tasks may share a client, and event loops may use it one after the other. A cancelled call ends at once. A transport that blocks,
    such as a `FakeTransport`, runs in threads.

    Example:
        >>> async with AsyncClient("http://localhost:8000") as client:
        ...     predictions = await asyncio.gather(*(client.predict(images) for images in batches))
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
        transport: AsyncTransport | Transport | Sequence[AsyncTransport | Transport] | None = None,
    ) -> None:
        replicas = replicas_from_arguments(
            url, transport, async_transport_from_url, tls=tls, compression=compression, admin_key=admin_key, may_be_async=True
        )
        super().__init__(Calls(replicas, AsyncioRuntime(), model, timeout_s, retry, max_parallel))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. May be called twice; see `Client.close`."""
        await self._calls.close()

    @property
    def transport(self) -> AsyncTransport | Transport:
        """The transport of the first server. It is closed with the client; see `Client.transport`."""
        transport: AsyncTransport | Transport = self._calls.replicas.replicas[0].transport
        return transport

    async def predict(
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
        """Classify images; see `Client.predict`."""
        request = self._calls.request(outputs, model, layout, dtype, resize, request_id, traceparent)
        return await self._calls.predict(images, request, timeout_s)

    def predict_iter(
        self,
        images: Iterable[NDArray[Any] | Picture] | AsyncIterable[NDArray[Any] | Picture],
        outputs: Sequence[str] = ("probabilities",),
        model: str | None = None,
        *,
        batch_size: int | None = None,
        layout: Literal["NCHW", "NHWC"] = "NCHW",
        dtype: Literal["float32", "uint8"] = "float32",
        resize: Literal["crop", "squash"] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Prediction, None]:
        """Classify images one after another as they come; see `Client.predict_iter`. The images may come from an asynchronous iterable.

        To leave the loop early, use `contextlib.aclosing`, which stops the requests that are under way.

        Example:
            >>> async for prediction in client.predict_iter(paths):
            ...     print(prediction.labels[0])
        """
        request = self._calls.request(outputs, model, layout, dtype, resize)
        return self._calls.predict_iter(images, request, batch_size, timeout_s)

    async def describe(self, model: str | None = None) -> ModelInfo:
        """Return the inputs, outputs and class names of a model; see `Client.describe`."""
        return await self._calls.describe(model)

    async def labels(self, model: str | None = None) -> tuple[str, ...]:
        """Return the class names of a model in index order; the indices as strings if it has no names; see `Client.labels`."""
        return (await self.describe(model)).class_names

    async def models(self) -> list[str]:
        """Return the names of all loaded models, sorted; see `Client.models`."""
        return await self._calls.models()

    async def classifiers(self) -> list[ModelInfo]:
        """Return all models that classify images; see `Client.classifiers`."""
        return await self._calls.classifiers()

    async def server_metadata(self) -> ServerMetadata:
        """Return a server's name and version; see `Client.server_metadata`."""
        return await self._calls.server_metadata()

    async def statistics(self) -> list[ModelStatistics]:
        """Return the counters of each version of each loaded model, of each server; see `Client.statistics`."""
        return await self._calls.statistics()

    async def health(self) -> list[ServerHealth]:
        """Return how each server is; see `Client.health`."""
        return await self._calls.health()

    async def wait_ready(self, deadline_s: float = 60.0, model: str | None = None) -> None:
        """Wait until a server responds to a real inference; see `Client.wait_ready`."""
        await self._calls.wait_ready(deadline_s, model)
