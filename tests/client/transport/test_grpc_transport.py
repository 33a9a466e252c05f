from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from defensemble import (
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    GrpcTransport,
    ModelNotFoundError,
    ModelState,
    NotReadyError,
    OutputRequest,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from defensemble._transport.grpc_transport import AsyncGrpcTransport
from tests.support.facts import assert_facts, raises
from tests.support.scripted import cut_off, free_port, scripted

IMAGES = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4) / np.float32(32)


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A gRPC server with scripted responses."""

    def __init__(self, respond: Callable[[Any, Any], Any]) -> None:
        self.respond = respond
        self.requests: list[Any] = []
        self.model_ready = True

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return self.respond(request, context)

    ModelConfig = ModelInfer
    ModelStatistics = ModelInfer
    RepositoryIndex = ModelInfer

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.model_ready)


@contextmanager
def serving(respond: Callable[[Any, Any], Any]) -> Iterator[tuple[Triton, GrpcTransport]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    triton = Triton(respond)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"grpc://127.0.0.1:{port}")
    try:
        yield triton, transport
    finally:
        transport.close()
        server.stop(0).wait(5)


@contextmanager
def transport_to(url: str) -> Iterator[GrpcTransport]:
    transport = GrpcTransport(url)
    yield transport
    transport.close()


def infer(transport: GrpcTransport, timeout_s: float = 5.0) -> Any:
    return transport.infer("m", {"images": IMAGES[:, :, ::-1]}, [OutputRequest("y"), OutputRequest("z", 3)], timeout_s)


def good(request: Any, context: Any) -> Any:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP32", shape=[2, 1])
    response.raw_output_contents.append(np.array([[1], [2]], np.float32).tobytes())
    return response


def rejecting(code: Any) -> Callable[[Any, Any], Any]:
    def respond(request: Any, context: Any) -> Any:
        context.abort(code, "the reason")

    return respond


def test_a_request_follows_the_protocol() -> None:
    with serving(good) as (triton, transport):
        assert infer(transport)["y"].tolist() == [[1.0], [2.0]]
        (request,) = triton.requests
        assert (request.model_name, request.inputs[0].name, request.inputs[0].datatype) == ("m", "images", "FP32")
        assert list(request.inputs[0].shape) == [2, 1, 4, 4]
        assert request.raw_input_contents[0] == IMAGES[:, :, ::-1].tobytes()
        assert [output.name for output in request.outputs] == ["y", "z"]
        assert request.outputs[1].parameters["classification"].int64_param == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, ModelNotFoundError),
        (grpc.StatusCode.INVALID_ARGUMENT, RequestRefusedError),
        (grpc.StatusCode.UNAVAILABLE, NotReadyError),
        (grpc.StatusCode.INTERNAL, ServerFailedError),
        (grpc.StatusCode.UNAUTHENTICATED, ForbiddenError),
    ],
)
def test_a_grpc_status_becomes_an_error_that_quotes_it(code: Any, kind: type[ServiceError]) -> None:
    with serving(rejecting(code)) as (_, transport), pytest.raises(ServiceError, match="'the reason'") as caught:
        infer(transport)
    assert type(caught.value) is kind
    assert_facts(str(caught.value), f"{transport.url} | 'm' | {code.name}")
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_restricted_configuration_is_forbidden_and_a_loading_model_is_not_ready() -> None:
    with serving(rejecting(grpc.StatusCode.UNAVAILABLE)) as (triton, transport):
        with raises(ForbiddenError, "configuration | 'm' | UNAVAILABLE | 'the reason' | No admin key"):
            transport.model_config("m", 5)
        triton.model_ready = False
        with pytest.raises(NotReadyError):
            transport.model_config("m", 5)


def test_a_timeout_ends_a_call() -> None:
    def slow(request: Any, context: Any) -> Any:
        time.sleep(0.5)
        return good(request, context)

    with serving(slow) as (_, transport):
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="timeout_s"):
            infer(transport, 0.1)
        assert time.monotonic() - started < 0.4


@pytest.mark.parametrize(
    ("contents", "facts"), [([b"", b""], "1 outputs | 2"), ([], "0 bytes | FP32 | [2, 1]"), ([b"123"], "3 bytes | FP32 | [2, 1]")]
)
def test_an_invalid_response_is_rejected(contents: list[bytes], facts: str) -> None:
    def broken(request: Any, context: Any) -> Any:
        response = good(request, context)
        del response.raw_output_contents[:]
        response.raw_output_contents.extend(contents)
        return response

    with serving(broken) as (_, transport), raises(ServerFailedError, facts):
        infer(transport)


def test_versions_that_are_not_numbers_are_rejected_in_statistics() -> None:
    def statistics(request: Any, context: Any) -> Any:
        return service_pb2.ModelStatisticsResponse(model_stats=[service_pb2.ModelStatistics(name="m", version="x")])

    with serving(statistics) as (_, transport), pytest.raises(ServerFailedError, match="models"):
        transport.models(5)


def test_the_index_of_a_server_whose_versions_are_names() -> None:
    def index(request: Any, context: Any) -> Any:
        entry = service_pb2.RepositoryIndexResponse.ModelIndex(name="m", version="v2.1", state="State.READY")  # as MLServer sends them
        return service_pb2.RepositoryIndexResponse(models=[entry])

    with serving(index) as (_, transport):
        assert transport.repository_index(5) == [ModelState("m", None, "READY", "")]


def test_a_missing_server_is_one_plain_sentence() -> None:
    transport = GrpcTransport(f"grpc://127.0.0.1:{free_port()}")
    for call in (lambda: infer(transport), lambda: transport.models(2), lambda: transport.live(2)):
        with raises(ConnectionFailedError, f"cannot connect to {transport.url} | connection refused | defensemble serve") as caught:
            call()
        assert isinstance(caught.value.__cause__, grpc.RpcError), "gRPC's text is in the cause"
        assert "UNAVAILABLE" not in str(caught.value)
    transport.close()


def test_connection_errors_state_a_plain_reason() -> None:
    with scripted(cut_off) as server, transport_to(f"grpcs://127.0.0.1:{server.port}") as transport:
        with raises(ConnectionFailedError, f"{transport.url} | TLS handshake failed"):
            transport.live(2)
    with transport_to("grpc://no-such-host.invalid") as transport:
        with raises(ConnectionFailedError, f"{transport.url} | host name cannot be resolved"):
            transport.live(5)


def test_a_connection_closed_during_the_call_raises() -> None:
    with scripted(cut_off) as server:
        transport = GrpcTransport(f"grpc://127.0.0.1:{server.port}")
        with raises(ConnectionFailedError, f"{transport.url} | 'm' | closed the connection | 8001 | 8000"):
            infer(transport)
        assert server.connections > 0
        transport.close()


def test_a_late_server_is_reached_within_a_second() -> None:
    port = free_port()
    transport = GrpcTransport(f"grpc://127.0.0.1:{port}")
    for _ in range(3):
        with pytest.raises(ConnectionFailedError):
            transport.live(1)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(good), server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    server.start()
    deadline = time.monotonic() + 3
    live = False
    while not live and time.monotonic() < deadline:
        try:
            live = transport.live(1)
        except (ConnectionFailedError, NotReadyError):  # the latter if the server begins to listen after the call has failed
            time.sleep(0.05)
    transport.close()
    server.stop(0).wait(5)
    assert live


@pytest.mark.slow
def test_a_missing_server_is_tried_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(transport: object, context: str, deadline: float) -> ServiceError:
        return ConnectionFailedError(context)

    monkeypatch.setattr(AsyncGrpcTransport, "_unreachable", unreachable)  # which connects, too
    with scripted(cut_off) as server:
        transport = GrpcTransport(f"grpc://127.0.0.1:{server.port}")
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            with pytest.raises(ConnectionFailedError):
                transport.live(1)
            time.sleep(0.01)
        transport.close()
    assert server.connections >= 10  # about 16; 8 if the pauses grow to a second


def test_a_closed_transport_raises() -> None:
    transport = GrpcTransport("grpc://127.0.0.1:1")
    transport.close()
    transport.close()
    with pytest.raises(ConnectionFailedError, match="closed"):
        transport.live(1)
