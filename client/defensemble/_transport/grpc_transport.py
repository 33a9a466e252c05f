"""The gRPC transport: the protocol's stubs from tritonclient on a channel that threads share.

`tritonclient.grpc.InferenceServerClient` wraps the same stubs, has no deadline by default, and took 650 us per call where this takes 607.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .._exceptions import ConnectionFailedError, ForbiddenError, InputError, NotReadyError, ServerFailedError, ServiceError
from .address import address_from_url
from .base import (
    NO_HEADERS,
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    TensorMetadata,
    Transport,
    check_admin_key,
    format_version,
)
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
from .http_connection import connect
from .tensor_codec import array_from_wire

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Reconnect quickly to a server that starts late: gRPC's default pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Reconnecting to a restarted server took 0.13 s after it listened, at most 0.24; with 1000 here, 0.27 and at most 0.53.
    ("grpc.max_reconnect_backoff_ms", 250),
    # min_reconnect_backoff_ms is not set: it also limits the time to connect.
    # Two clients of one address share nothing, above all not the pause after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    # As in the HTTP transport, no proxy is read from the environment.
    ("grpc.enable_http_proxy", 0),
]
_PROBE_TIMEOUT_S = 1.0  # for finding out why a connection failed
_ADMIN_HEADER = "triton-grpc-protocol-x-admin-key"  # Triton adds the prefix to the header that it is configured with


class GrpcTransport(Transport):
    """Call a Triton server over gRPC (`grpc://`, or `grpcs://` with TLS). Threads may share it; calls in a forked child raise an error.

    Args:
        url: The server's URL.
        credentials: The channel credentials for `grpcs://`; by default, gRPC's root certificates are trusted.
        admin_key: Sent only with calls of the repository API and for configurations.

    Raises:
        InputError: The URL is not the URL of a gRPC server, or the key is malformed.

    Example:
        >>> transport = GrpcTransport("grpc://localhost:8001", admin_key="the-key-of-the-server")
        >>> client = Client("grpc://localhost:8001", transport=transport)
    """

    def __init__(self, url: str, *, credentials: grpc.ChannelCredentials | None = None, admin_key: str | None = None) -> None:
        address = address_from_url(url)
        if address.scheme not in ("grpc", "grpcs"):
            raise InputError(
                f"GrpcTransport expects grpc:// or grpcs://, got {url!r:.120}: use HttpTransport, or Client, which chooses by the URL"
            )
        self._admin_key = check_admin_key(admin_key)
        self._admin_metadata: tuple[tuple[str, str], ...] = () if admin_key is None else ((_ADMIN_HEADER, admin_key),)
        if address.scheme == "grpcs":
            self._channel = grpc.secure_channel(address.netloc, credentials or grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.netloc, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._address = address
        self._credentials = credentials
        self._url = address.url
        self._is_closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"GrpcTransport({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def infer(
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
        request = service_pb2.ModelInferRequest(model_name=model)
        if version is not None:
            request.model_version = format_version(version)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        for output in outputs:
            requested = request.outputs.add(name=output.name)
            if output.class_count:
                requested.parameters["classification"].int64_param = output.class_count
        response = self._call(self._stub.ModelInfer, request, timeout_s, "run model", model)
        context = call_context(self._url, "run model", model)
        if len(response.raw_output_contents) != len(response.outputs):
            reason = f"the response has {len(response.outputs)} outputs, but data for {len(response.raw_output_contents)}"
            raise service_error(ServerFailedError, context, reason)
        arrays = {
            output.name: array_from_wire(output.datatype, tuple(output.shape), content, context)
            for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        return Outputs(arrays, response.model_version)

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        request = service_pb2.ModelMetadataRequest(name=model)
        response = self._call(self._stub.ModelMetadata, request, timeout_s, "read the metadata of model", model)
        inputs, outputs = (
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in tensors) for tensors in (response.inputs, response.outputs)
        )
        return ModelMetadata(response.name, response.platform, inputs, outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """Return the model's configuration as JSON. For a ready model, Triton's UNAVAILABLE means that it is restricted."""
        version_text = "" if version is None else format_version(version)
        action = "read the configuration of model"
        request = service_pb2.ModelConfigRequest(name=model, version=version_text)
        try:
            response = self._call(self._stub.ModelConfig, request, timeout_s, action, model, self._admin_metadata)
        except NotReadyError as error:
            ready_request = service_pb2.ModelReadyRequest(name=model, version=version_text)
            if self._call(self._stub.ModelReady, ready_request, timeout_s, "check the readiness of model", model).ready:
                raise self._forbidden(error, action, model) from error
            raise
        config: dict[str, Any] = MessageToDict(response.config, preserving_proto_field_name=True)
        return config

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        action = "read the repository index"
        response = self._repository_call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), timeout_s, action)
        with protocol_errors(call_context(self._url, action)):
            return [
                ModelState(entry.name, int(entry.version) if entry.version else None, entry.state, entry.reason)
                for entry in response.models
            ]

    def load_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        self._repository_call(self._stub.RepositoryModelLoad, request, timeout_s, "load model", model)

    def unload_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._repository_call(self._stub.RepositoryModelUnload, request, timeout_s, "unload model", model)

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        action = "list the models"
        response = self._call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout_s, action)
        with protocol_errors(call_context(self._url, action)):
            return [
                ModelStatistics(
                    entry.name,
                    int(entry.version),
                    entry.inference_stats.success.count + entry.inference_stats.fail.count,
                    entry.execution_count,
                    entry.last_inference,
                )
                for entry in response.model_stats
            ]

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        response = self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest(), timeout_s, "read the server metadata")
        return ServerMetadata(response.name, response.version)

    def live(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s, "check the health").live)

    def ready(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), timeout_s, "check the readiness").ready)

    def close(self) -> None:
        self._is_closed = True
        if self._process == os.getpid():
            self._channel.close()

    def _call(
        self,
        method: Callable[..., Any],
        request: Any,
        timeout_s: float,
        action: str,
        model: str = "",
        metadata: tuple[tuple[str, str], ...] | None = None,
    ) -> Any:
        if self._process != os.getpid():
            # The channel's threads exist only in the parent, and its socket belongs to the parent.
            raise ConnectionFailedError(
                f"{call_context(self._url, action, model)}: gRPC does not survive a fork, and process {self._process} opened this channel; "
                "create a new client in this process, or use http://"
            )
        try:
            return method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            hints = NO_HINTS if metadata is None else hints_for_admins(self._admin_key)
            details = redact_key(error.details() or "", self._admin_key)
            context = call_context(self._url, action, model)
            raise error_from_grpc(error.code().name, details, context, lambda: self._unreachable(context), hints) from error
        except ValueError as error:  # grpc raises this for a closed channel
            if not self._is_closed:
                raise
            raise service_error(ConnectionFailedError, call_context(self._url, action, model), "this transport is closed") from error

    def _repository_call(self, method: Callable[..., Any], request: Any, timeout_s: float, action: str, model: str = "") -> Any:
        """Call the repository API, and find out what the code UNAVAILABLE means.

        Triton returns it if the call is restricted, if its model control mode is not explicit, or while it starts or shuts down. A server
        opens its ports after its start and does not return from a shutdown: if it serves after such a response, it did before.
        """
        try:
            return self._call(method, request, timeout_s, action, model, self._admin_metadata)
        except NotReadyError as error:
            deadline = time.monotonic() + timeout_s
            index, _ = self._try_call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), deadline, self._admin_metadata)
            if index == "OK" and model:
                raise model_control_disabled(call_context(self._url, action, model), self._reason(error)) from error
            if index == "UNAVAILABLE" and self._is_serving(deadline):
                raise self._forbidden(error, action, model) from error
            raise

    def _is_serving(self, deadline: float) -> bool:
        """Return whether the server is up: ready or, if a model keeps it from that, serving its statistics, which it does only when up."""
        _, response = self._try_call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), deadline)
        if response is not None and response.ready:
            return True
        return self._try_call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), deadline)[0] == "OK"

    def _try_call(
        self, method: Callable[..., Any], request: Any, deadline: float, metadata: tuple[tuple[str, str], ...] | None = None
    ) -> tuple[str, Any]:
        """Return the status code and the response, None after an error. Callers use it on the way to raising another error."""
        try:
            return "OK", method(request, timeout=max(deadline - time.monotonic(), 0.001), metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, None

    def _forbidden(self, error: NotReadyError, action: str, model: str) -> ServiceError:
        return service_error(ForbiddenError, call_context(self._url, action, model), self._reason(error), hints_for_admins(self._admin_key))

    def _reason(self, error: NotReadyError) -> str:
        status: Any = error.__cause__
        return f"{status.code().name}, {redact_key(status.details() or '', self._admin_key)!r}"

    def _unreachable(self, context: str) -> ServiceError | None:
        """Return the error of a failed connection, or None if the server is alive.

        The reason comes from a connection of our own: gRPC states it only as text.
        """
        deadline = time.monotonic() + _PROBE_TIMEOUT_S
        _, response = self._try_call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), deadline)
        if response is not None and response.live:
            return None
        try:
            connect(self._address, self._probe_context(), time.monotonic() + _PROBE_TIMEOUT_S).close()
        except OSError as error:
            return error_from_connect(error, self._url, kind=ConnectionFailedError)
        reason = "the server closed the connection (is this a gRPC port, and does it require grpcs://?)"
        return service_error(ConnectionFailedError, context, reason)

    def _probe_context(self) -> ssl.SSLContext | None:
        if self._address.scheme != "grpcs":
            return None
        context = ssl.create_default_context()
        if self._credentials is not None:  # they hold the trusted certificates and cannot be read: the probe checks none
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
