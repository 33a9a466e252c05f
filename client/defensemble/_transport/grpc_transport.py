"""gRPC, through the protocol's own stubs from tritonclient and a channel that threads may share.

`tritonclient.grpc.InferenceServerClient` wraps the same stubs, has no deadline by default, and took 650 us where this takes 607.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .._exceptions import ConnectionFailedError, ForbiddenError, InputError, NotReadyError, ServerFailedError, ServiceError
from .address import address_from_url
from .base import (
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
    version_text,
)
from .error_mapping import NO_HINTS, error_from_grpc, hints_for_admins, model_control_disabled, reading, redact_key, service_error
from .tensor_codec import array_from_wire

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that starts late is found at once, and not after gRPC's own pauses of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A server that was restarted is found 0.13 s after it listens, at most 0.24; with 1000 here it was 0.27, at most 0.53.
    ("grpc.max_reconnect_backoff_ms", 250),
    # Not min_reconnect_backoff_ms: it is the time that connecting may take, too.
    # Two clients of one address share nothing, the pause after a failure least of all.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP here: no proxy is taken from the environment.
    ("grpc.enable_http_proxy", 0),
]
_ALIVE_TIMEOUT_S = 1.0
_ADMIN_HEADER = "triton-grpc-protocol-x-admin-key"  # Triton puts the first two words before the header that it was told


class GrpcTransport(Transport):
    """Talks gRPC to a Triton server (`grpc://`, or `grpcs://` with TLS); threads may share it, a forked child may not: its calls raise.

    `credentials` are gRPC's channel credentials for `grpcs://`; the system's roots by default. `admin_key` goes with calls of the
    repository and for configurations, and with no others.

    Raises:
        InputError: The URL is not one of a gRPC server, or the key is none.
    """

    def __init__(self, url: str, *, credentials: grpc.ChannelCredentials | None = None, admin_key: str | None = None) -> None:
        address = address_from_url(url)
        if address.scheme not in ("grpc", "grpcs"):
            raise InputError(f"GrpcTransport takes grpc:// and grpcs://, got {url!r:.120}: use HttpTransport, or Client, which chooses")
        self._admin_key = check_admin_key(admin_key)
        self._admin_metadata: tuple[tuple[str, str], ...] = () if admin_key is None else ((_ADMIN_HEADER, admin_key),)
        if address.scheme == "grpcs":
            self._channel = grpc.secure_channel(address.netloc, credentials or grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.netloc, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._url = address.url
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"GrpcTransport({self._url!r})"

    @property
    def url(self) -> str:
        return self._url

    def infer(self, model: str, inputs: Inputs, outputs: Sequence[OutputRequest], timeout_s: float, version: int | None = None) -> Outputs:
        request = service_pb2.ModelInferRequest(model_name=model)
        if version is not None:
            request.model_version = version_text(version)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype="FP32", shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        for output in outputs:
            wanted = request.outputs.add(name=output.name)
            if output.class_count:
                wanted.parameters["classification"].int64_param = output.class_count
        answer = self._call(self._stub.ModelInfer, request, timeout_s, "to run model", model)
        what = f"{self._url}, asked to run model {model!r}"
        if len(answer.raw_output_contents) != len(answer.outputs):
            told = f"its answer holds {len(answer.outputs)} outputs and the data of {len(answer.raw_output_contents)}"
            raise service_error(ServerFailedError, what, told)
        return {
            output.name: array_from_wire(output.datatype, tuple(output.shape), content, what)
            for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        request = service_pb2.ModelMetadataRequest(name=model)
        answer = self._call(self._stub.ModelMetadata, request, timeout_s, "for the metadata of model", model)
        inputs, outputs = (
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in tensors) for tensors in (answer.inputs, answer.outputs)
        )
        return ModelMetadata(answer.name, answer.platform, inputs, outputs)

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """The model's configuration as JSON; for a ready model, Triton's UNAVAILABLE means that it is restricted."""
        chosen = "" if version is None else version_text(version)
        asked = "for the configuration of model"
        request = service_pb2.ModelConfigRequest(name=model, version=chosen)
        try:
            answer = self._call(self._stub.ModelConfig, request, timeout_s, asked, model, self._admin_metadata)
        except NotReadyError as error:
            question = service_pb2.ModelReadyRequest(name=model, version=chosen)
            if self._call(self._stub.ModelReady, question, timeout_s, "whether it is ready, model", model).ready:
                raise self._forbidden(error, asked, model) from error
            raise
        config: dict[str, Any] = MessageToDict(answer.config, preserving_proto_field_name=True)
        return config

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        asked = "for its repository's index"
        answer = self._repository_call(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), timeout_s, asked)
        with reading(self._what(asked)):
            return [ModelState(one.name, int(one.version) if one.version else None, one.state, one.reason) for one in answer.models]

    def load_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        self._repository_call(self._stub.RepositoryModelLoad, request, timeout_s, "to load model", model)

    def unload_model(self, model: str, timeout_s: float) -> None:
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._repository_call(self._stub.RepositoryModelUnload, request, timeout_s, "to unload model", model)

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        asked = "which models it serves"
        answer = self._call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout_s, asked)
        with reading(self._what(asked)):
            return [
                ModelStatistics(
                    one.name,
                    int(one.version),
                    one.inference_stats.success.count + one.inference_stats.fail.count,
                    one.execution_count,
                    one.last_inference,
                )
                for one in answer.model_stats
            ]

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        answer = self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest(), timeout_s, "for its version")
        return ServerMetadata(answer.name, answer.version)

    def live(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s, "whether it lives").live)

    def ready(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), timeout_s, "whether it is ready").ready)

    def close(self) -> None:
        self._closed = True
        if self._process == os.getpid():
            self._channel.close()

    def _call(
        self,
        method: Callable[..., Any],
        request: Any,
        timeout_s: float,
        asked: str,
        model: str = "",
        metadata: tuple[tuple[str, str], ...] | None = None,
    ) -> Any:
        if self._process != os.getpid():
            # The channel's threads are in the parent alone, and its socket is the parent's too.
            told = f"gRPC does not survive a fork, and this was opened by process {self._process}"
            raise ConnectionFailedError(f"{self._what(asked, model)}: {told}: make a new client in this process, or use http://")
        try:
            return method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            hints = NO_HINTS if metadata is None else hints_for_admins(self._admin_key)
            details = redact_key(error.details() or "", self._admin_key)
            raise error_from_grpc(error.code().name, details, self._what(asked, model), self._alive, hints) from error
        except ValueError as error:  # what grpc says of a closed channel
            if not self._closed:
                raise
            raise service_error(ConnectionFailedError, self._what(asked, model), "this transport is closed") from error

    def _repository_call(self, method: Callable[..., Any], request: Any, timeout_s: float, asked: str, model: str = "") -> Any:
        """Calls what Triton answers with UNAVAILABLE for three reasons, and finds out for which.

        It is restricted, it is for servers with explicit model control alone, or the server is on its way up or down. A server opens its
        ports once it is up and does not come back from its way down: where it serves after such an answer, it did before.
        """
        try:
            return self._call(method, request, timeout_s, asked, model, self._admin_metadata)
        except NotReadyError as error:
            ends = time.monotonic() + timeout_s
            index, _ = self._ask(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), ends, self._admin_metadata)
            if index == "OK" and model:
                raise model_control_disabled(self._what(asked, model), self._told(error)) from error
            if index == "UNAVAILABLE" and self._serves(ends):
                raise self._forbidden(error, asked, model) from error
            raise

    def _serves(self, ends: float) -> bool:
        """Whether the server is up: ready or, where a model keeps it from that, telling its statistics, which it does only then."""
        _, answer = self._ask(self._stub.ServerReady, service_pb2.ServerReadyRequest(), ends)
        if answer is not None and answer.ready:
            return True
        return self._ask(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), ends)[0] == "OK"

    def _ask(
        self, method: Callable[..., Any], request: Any, ends: float, metadata: tuple[tuple[str, str], ...] | None = None
    ) -> tuple[str, Any]:
        """A status code and the answer, None where there is none; for callers that are about to raise the error that made them ask."""
        try:
            return "OK", method(request, timeout=max(ends - time.monotonic(), 0.001), metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, None

    def _forbidden(self, error: NotReadyError, asked: str, model: str) -> ServiceError:
        return service_error(ForbiddenError, self._what(asked, model), self._told(error), hints_for_admins(self._admin_key))

    def _told(self, error: NotReadyError) -> str:
        status: Any = error.__cause__
        return f"{status.code().name}, {redact_key(status.details() or '', self._admin_key)!r}"

    def _what(self, asked: str, model: str = "") -> str:
        return f"{self._url}, asked {asked} {model!r}" if model else f"{self._url}, asked {asked}"

    def _alive(self) -> bool:
        _, answer = self._ask(self._stub.ServerLive, service_pb2.ServerLiveRequest(), time.monotonic() + _ALIVE_TIMEOUT_S)
        return answer is not None and bool(answer.live)
