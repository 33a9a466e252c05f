"""The gRPC transports: the protocol's stubs from tritonclient on a channel that threads, or tasks, share.

Medians of one call at batch 1, 5 x 1,000 in random order on 2 busy cores: the bare stub 754 us, this transport 801, tritonclient's own
client, which has no deadline by default, 818, and this transport 879 where calls must not be cut off (`grpc_channel.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2

from .._exceptions import (
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    InputError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from .address import address_from_url
from .base import (
    BINARY_TENSORS,
    CLASSIFICATION,
    MODEL_CONFIGURATION,
    NO_HEADERS,
    STATISTICS,
    AsyncTransport,
    ConnectionOptions,
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    TensorMetadata,
    check_admin_key,
    format_version,
)
from .blocking import BlockingTransport
from .error_mapping import (
    NO_HINTS,
    call_context,
    error_from_connect,
    error_from_grpc,
    hints_for_admins,
    model_control_disabled,
    protocol_errors,
    redact_key,
    service_error,
)
from .grpc_channel import AsyncioChannel, BlockingChannel, GrpcChannel, Metadata
from .grpc_messages import arrays_from_response, infer_request

_RECONNECT_S = 0.15  # a channel that could not connect fails each call until its first pause is over, 0.12 s at most
_PROBE_TIMEOUT_S = 1.0  # for finding out why a connection failed
_ADMIN_HEADER = "triton-grpc-protocol-x-admin-key"  # Triton adds the prefix to the header that it is configured with
_UNIMPLEMENTED: Mapping[type[ServiceError], str] = {
    RequestRefusedError: "The server does not support this call, an extension of the KServe protocol, or its compression."
}
# How servers refuse tensors in a form that they do not know: Python servers answer an exception of their own with the last two.
_REFUSALS = ("INVALID_ARGUMENT", "UNIMPLEMENTED", "INTERNAL", "UNKNOWN")


class AsyncGrpcTransport(AsyncTransport):
    """Call a server over gRPC (`grpc://`, or `grpcs://` with TLS) from any event loop. Calls in a forked child raise an error.

    Args:
        url: The server's URL.
        options: The admin key, the files for TLS, and the compression.

    Raises:
        InputError: The URL is not the URL of a gRPC server, or an option is invalid.

    Example:
        >>> transport = AsyncGrpcTransport("grpc://localhost:8001")
        >>> await transport.models(timeout_s=5)
    """

    _channel_class: type[GrpcChannel] = AsyncioChannel

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        options = options or ConnectionOptions()
        address = address_from_url(url)
        if address.scheme not in ("grpc", "grpcs"):
            raise InputError(
                f"a gRPC transport expects grpc:// or grpcs://, got {url!r:.120}: use HttpTransport, or Client, which chooses by the URL"
            )
        self._url = address.url
        self._admin_key = check_admin_key(options.admin_key)
        self._admin_metadata: Metadata = () if self._admin_key is None else ((_ADMIN_HEADER, self._admin_key),)
        self._channel = self._channel_class(address, options)
        self._takes_raw: bool | None = None  # whether the server accepts tensors as bytes; None until it accepted any
        self._missing: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    @property
    def missing_features(self) -> frozenset[str]:
        return frozenset(self._missing)

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        deadline = time.monotonic() + timeout_s
        version_text = "" if version is None else format_version(version)
        metadata = tuple(headers.items())

        async def send(is_raw: bool) -> Any:
            request = infer_request(model, version_text, inputs, outputs, request_id, is_raw=is_raw)
            return await self._call("ModelInfer", request, deadline - time.monotonic(), "run model", model, headers=metadata)

        is_raw = self._takes_raw is not False
        try:
            response = await send(is_raw)
        except ServiceError as error:
            if self._takes_raw is not None or _code(error) not in _REFUSALS or not await self._is_foreign(deadline):
                raise
            is_raw = False
            try:
                response = await send(is_raw)
            except ServiceError:
                raise error from error.__cause__  # the form was not the reason
        if self._takes_raw is not is_raw:
            self._takes_raw = is_raw
            self._missing |= set() if is_raw else {BINARY_TENSORS}
        arrays = arrays_from_response(response, call_context(self._url, "run model", model))
        if any(output.class_count and output.name in arrays and arrays[output.name].dtype != object for output in outputs):
            self._missing.add(CLASSIFICATION)
        return Outputs(arrays, response.model_version)

    async def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        request = service_pb2.ModelMetadataRequest(name=model)
        response = await self._call("ModelMetadata", request, timeout_s, "read the metadata of model", model)
        inputs, outputs = (
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in tensors) for tensors in (response.inputs, response.outputs)
        )
        return ModelMetadata(response.name, response.platform, inputs, outputs)

    async def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """Return the model's configuration as JSON. For a ready model, Triton's UNAVAILABLE means that it is restricted."""
        deadline = time.monotonic() + timeout_s
        version_text = "" if version is None else format_version(version)
        action = "read the configuration of model"
        request = service_pb2.ModelConfigRequest(name=model, version=version_text)
        try:
            response = await self._call("ModelConfig", request, timeout_s, action, model, is_admin=True, feature=MODEL_CONFIGURATION)
        except NotReadyError as error:
            ready_request = service_pb2.ModelReadyRequest(name=model, version=version_text)
            if (await self._call("ModelReady", ready_request, deadline - time.monotonic(), "check the readiness of model", model)).ready:
                raise self._forbidden(error, action, model) from error
            raise
        config: dict[str, Any] = MessageToDict(response.config, preserving_proto_field_name=True)
        return config

    async def models(self, timeout_s: float) -> list[str]:
        deadline = time.monotonic() + timeout_s
        if STATISTICS not in self._missing:
            try:
                return await super().models(timeout_s)
            except RequestRefusedError as error:
                if _code(error) != "UNIMPLEMENTED":
                    raise
        index = await self._index(max(deadline - time.monotonic(), 0.001), "list the models")
        return sorted({entry.name for entry in index if entry.state == "READY"})

    async def repository_index(self, timeout_s: float) -> list[ModelState]:
        return await self._index(timeout_s, "read the repository index")

    async def _index(self, timeout_s: float, action: str) -> list[ModelState]:
        response = await self._repository_call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), timeout_s, action)
        with protocol_errors(call_context(self._url, action)):
            return [
                # MLServer: "State.READY", and any text as the version
                ModelState(
                    entry.name, int(entry.version) if entry.version.isdecimal() else None, entry.state.rpartition(".")[2], entry.reason
                )
                for entry in response.models
            ]

    async def load_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        await self._repository_call("RepositoryModelLoad", request, timeout_s, "load model", model)

    async def unload_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        await self._repository_call("RepositoryModelUnload", request, timeout_s, "unload model", model)

    async def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        action = "list the models"
        request = service_pb2.ModelStatisticsRequest()
        response = await self._call("ModelStatistics", request, timeout_s, action, feature=STATISTICS)
        with protocol_errors(call_context(self._url, action)):
            return [_statistics(entry) for entry in response.model_stats]

    async def server_metadata(self, timeout_s: float) -> ServerMetadata:
        response = await self._call("ServerMetadata", service_pb2.ServerMetadataRequest(), timeout_s, "read the server metadata")
        return ServerMetadata(response.name, response.version)

    async def live(self, timeout_s: float) -> bool:
        return bool((await self._call("ServerLive", service_pb2.ServerLiveRequest(), timeout_s, "check the health")).live)

    async def ready(self, timeout_s: float) -> bool:
        return bool((await self._call("ServerReady", service_pb2.ServerReadyRequest(), timeout_s, "check the readiness")).ready)

    async def close(self) -> None:
        if self._channel.process == os.getpid():
            await self._channel.close()

    async def _call(
        self,
        method: str,
        request: Any,
        timeout_s: float,
        action: str,
        model: str = "",
        *,
        headers: Metadata = (),
        is_admin: bool = False,
        feature: str = "",
    ) -> Any:
        """Call a method of the service.

        Args:
            method: Name of the method.
            request: Its message.
            timeout_s: Timeout in seconds.
            action: What the call does, for messages.
            model: Name of the model that it is about.
            headers: Metadata to send.
            is_admin: Whether to send the admin key.
            feature: What the server does not have if the method is unimplemented.
        """
        deadline = time.monotonic() + timeout_s
        context = call_context(self._url, action, model)
        if self._channel.process != os.getpid():
            # The channel's threads exist only in the parent, and its socket belongs to the parent.
            raise _permanent(
                f"{context}: gRPC does not survive a fork, and process {self._channel.process} opened this channel; create a new client in "
                "this process, or use http://"
            )
        try:
            response = await self._channel.invoke(method, request, timeout_s, self._admin_metadata if is_admin else headers)
        except TimeoutError as error:
            raise service_error(DeadlineExceededError, context, "timed out") from error
        except (grpc.RpcError, ValueError) as error:
            if self._channel.is_closed:  # its calls are cancelled, and gRPC raises ValueError for new ones
                raise _permanent(f"{context}: this transport is closed") from error
            if not isinstance(error, grpc.RpcError):
                raise
            code = error.code().name
            if code == "UNIMPLEMENTED":
                self._missing |= {feature} - {""}
            unreachable = await self._unreachable(context, deadline) if code == "UNAVAILABLE" else None
            details = redact_key(error.details() or "", self._admin_key)
            hints = _UNIMPLEMENTED if code == "UNIMPLEMENTED" else hints_for_admins(self._admin_key) if is_admin else NO_HINTS
            try:
                raise error_from_grpc(code, details, context, lambda: unreachable, hints) from error
            finally:
                unreachable = None  # the error's traceback would refer to the error, and keep the request in memory
        if response is None:  # the status is OK, but the message was lost on the way
            raise service_error(ServerFailedError, context, "the response has no message")
        return response

    async def _repository_call(self, method: str, request: Any, timeout_s: float, action: str, model: str = "") -> Any:
        """Call the repository API, and find out what the code UNAVAILABLE means.

        Triton returns it if the call is restricted, if its model control mode is not explicit, or while it starts or shuts down. A server
        opens its ports after its start and does not return from a shutdown: if it serves after such a response, it did before.
        """
        deadline = time.monotonic() + timeout_s
        try:
            return await self._call(method, request, timeout_s, action, model, is_admin=True)
        except NotReadyError as error:
            code, _ = await self._try_call("RepositoryIndex", service_pb2.RepositoryIndexRequest(), deadline, self._admin_metadata)
            if code == "OK" and model:
                raise model_control_disabled(call_context(self._url, action, model), self._reason(error)) from error
            if code == "UNAVAILABLE" and await self._is_serving(deadline):
                raise self._forbidden(error, action, model) from error
            raise

    async def _is_serving(self, deadline: float) -> bool:
        """Return whether the server is up: ready or, if a model keeps it from that, serving its statistics, which it does only when up."""
        _, response = await self._try_call("ServerReady", service_pb2.ServerReadyRequest(), deadline)
        if response is not None and response.ready:
            return True
        return (await self._try_call("ModelStatistics", service_pb2.ModelStatisticsRequest(), deadline))[0] == "OK"

    async def _is_foreign(self, deadline: float) -> bool:
        """Return whether the server is not Triton, or does not report what it is."""
        _, response = await self._try_call("ServerMetadata", service_pb2.ServerMetadataRequest(), deadline)
        return response is None or response.name != "triton"

    async def _try_call(self, method: str, request: Any, deadline: float, metadata: Metadata = ()) -> tuple[str, Any]:
        """Return the status code, empty without one, and the response, None after an error. Used on the way to raising another error."""
        try:
            return "OK", await self._channel.invoke(method, request, max(deadline - time.monotonic(), 0.001), metadata)
        except grpc.RpcError as error:
            return error.code().name, None
        except (TimeoutError, ValueError):  # no time is left, or the transport was closed
            return "", None

    def _forbidden(self, error: NotReadyError, action: str, model: str) -> ServiceError:
        return service_error(ForbiddenError, call_context(self._url, action, model), self._reason(error), hints_for_admins(self._admin_key))

    def _reason(self, error: NotReadyError) -> str:
        status: Any = error.__cause__
        return f"{status.code().name}, {redact_key(status.details() or '', self._admin_key)!r}"

    async def _unreachable(self, context: str, deadline: float) -> ServiceError | None:
        """Return the error of a failed connection, or None if the server is alive.

        The reason comes from a connection of our own: gRPC states it only as text.
        """
        self._channel.forget_server()
        deadline = min(deadline, time.monotonic() + _PROBE_TIMEOUT_S)
        _, response = await self._try_call("ServerLive", service_pb2.ServerLiveRequest(), deadline)
        if response is not None and response.live:
            return None
        try:
            await self._channel.connect(max(deadline - time.monotonic(), 0.05))
        except OSError as error:
            unreachable = error_from_connect(error, self._url, kind=ConnectionFailedError)
        else:
            reason = "the server closed the connection (is this a gRPC port, and does it require grpcs://?)"
            unreachable = service_error(ConnectionFailedError, context, reason)
        if unreachable.is_retryable:
            unreachable.retry_after_s = _RECONNECT_S
        return unreachable


class GrpcTransport(BlockingTransport):
    """Call a server over gRPC (`grpc://`, or `grpcs://` with TLS). Threads may share it; calls in a forked child raise an error.

    Args:
        url: The server's URL.
        options: The admin key, the files for TLS, and the compression.

    Raises:
        InputError: The URL is not the URL of a gRPC server, or an option is invalid.

    Example:
        >>> transport = GrpcTransport("grpc://localhost:8001", ConnectionOptions(admin_key="the-key-of-the-server"))
        >>> client = Client("grpc://localhost:8001", transport=transport)
    """

    def __init__(self, url: str, options: ConnectionOptions | None = None) -> None:
        super().__init__(_BlockingCalls(url, options))


class _BlockingCalls(AsyncGrpcTransport):
    _channel_class = BlockingChannel


def _code(error: ServiceError) -> str | None:
    """Return the name of the gRPC status that caused an error; None if none did."""
    return error.__cause__.code().name if isinstance(error.__cause__, grpc.RpcError) else None


def _permanent(text: str) -> ConnectionFailedError:
    error = ConnectionFailedError(text)
    error.is_retryable = False
    return error


def _statistics(entry: Any) -> ModelStatistics:
    stats = entry.inference_stats
    return ModelStatistics(
        entry.name,
        int(entry.version),
        requests=stats.success.count + stats.fail.count,
        executions=entry.execution_count,
        last_ms=entry.last_inference,
        failures=stats.fail.count,
        images=entry.inference_count,
        success_ns=stats.success.ns,
        queue_ns=stats.queue.ns,
        compute_ns=stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns,
    )
