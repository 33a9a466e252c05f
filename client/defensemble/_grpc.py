"""gRPC, through the protocol's own stubs from tritonclient and a channel that threads may share.

`tritonclient.grpc.InferenceServerClient` wraps the same stubs, has no deadline by default, and took 650 us where this takes 607.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from defensemble._exceptions import ConnectionFailedError, ForbiddenError, InputError, NotReadyError, ServerFailedError
from defensemble._translate import error_from_grpc, service_error
from defensemble._transport import ModelMetadata, OutputRequest, ServerMetadata, TensorMetadata, address_from_url
from defensemble._wire import array_from_wire

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that starts late is found at once, and not after gRPC's own pauses of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Not min_reconnect_backoff_ms: it is the time that connecting may take, too.
    # Two clients of one address share nothing, the pause after a failure least of all.
    ("grpc.use_local_subchannel_pool", 1),
    # As over HTTP here: no proxy is taken from the environment.
    ("grpc.enable_http_proxy", 0),
]
_ALIVE_TIMEOUT_S = 1.0


class GrpcTransport:
    """Talks gRPC to a Triton server (`grpc://`, or `grpcs://` with TLS); threads may share it, a forked child may not: its calls raise.

    `credentials` are gRPC's channel credentials for `grpcs://`; the system's roots by default.

    Raises:
        InputError: The URL is not one of a gRPC server.
    """

    def __init__(self, url: str, *, credentials: grpc.ChannelCredentials | None = None) -> None:
        address = address_from_url(url)
        if address.scheme not in ("grpc", "grpcs"):
            raise InputError(f"GrpcTransport takes grpc:// and grpcs://, got {url!r}: use HttpTransport, or Client, which chooses")
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
        """Where the server is."""
        return self._url

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[OutputRequest], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Runs a model."""
        request = service_pb2.ModelInferRequest(model_name=model)
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
        """What the server tells everyone about a model."""
        answer = self._call(
            self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=model), timeout_s, "for the metadata of model", model
        )
        inputs, outputs = (
            tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in tensors) for tensors in (answer.inputs, answer.outputs)
        )
        return ModelMetadata(answer.name, answer.platform, inputs, outputs)

    def model_config(self, model: str, timeout_s: float) -> dict[str, Any]:
        """The model's configuration as JSON; Triton says UNAVAILABLE where it is restricted: of a ready model, it means that."""
        try:
            answer = self._call(
                self._stub.ModelConfig, service_pb2.ModelConfigRequest(name=model), timeout_s, "for the configuration of model", model
            )
        except NotReadyError as error:
            ready = self._call(
                self._stub.ModelReady, service_pb2.ModelReadyRequest(name=model), timeout_s, "whether it is ready, model", model
            )
            if ready.ready:
                raise ForbiddenError(f"{self._url} keeps the configuration of model {model!r} to itself ({error})") from error
            raise
        config: dict[str, Any] = MessageToDict(answer.config, preserving_proto_field_name=True)
        return config

    def models(self, timeout_s: float) -> list[str]:
        """Names of the models that are loaded, sorted."""
        answer = self._call(self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout_s, "which models it serves")
        return sorted({one.name for one in answer.model_stats})

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """The server's name and version."""
        answer = self._call(self._stub.ServerMetadata, service_pb2.ServerMetadataRequest(), timeout_s, "for its version")
        return ServerMetadata(answer.name, answer.version)

    def live(self, timeout_s: float) -> bool:
        """Whether the server says that it lives."""
        return bool(self._call(self._stub.ServerLive, service_pb2.ServerLiveRequest(), timeout_s, "whether it lives").live)

    def ready(self, timeout_s: float) -> bool:
        """Whether the server says that it is ready."""
        return bool(self._call(self._stub.ServerReady, service_pb2.ServerReadyRequest(), timeout_s, "whether it is ready").ready)

    def close(self) -> None:
        """Closes the channel."""
        self._closed = True
        if self._process == os.getpid():
            self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any, timeout_s: float, asked: str, model: str = "") -> Any:
        what = f"{self._url}, asked {asked} {model!r}" if model else f"{self._url}, asked {asked}"
        if self._process != os.getpid():
            # The channel's threads are in the parent alone, and its socket is the parent's too.
            mend = "make a new client in this process, or use http://"
            raise ConnectionFailedError(f"{what}: gRPC does not survive a fork, and this was opened by process {self._process}: {mend}")
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_grpc(error.code().name, error.details(), what, self._alive) from error
        except ValueError as error:  # what grpc says of a closed channel
            if not self._closed:
                raise
            raise service_error(ConnectionFailedError, what, "this transport is closed") from error

    def _alive(self) -> bool:
        try:
            return bool(self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=_ALIVE_TIMEOUT_S).live)
        except grpc.RpcError:
            return False  # not swallowed: the caller is about to raise the error that made it ask
