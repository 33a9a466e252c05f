"""The admin key: validation, the requests that carry it, and that no message shows it."""

from __future__ import annotations

import json
import pickle
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from defensemble import (
    Client,
    FakeTransport,
    ForbiddenError,
    GrpcTransport,
    HttpTransport,
    InputError,
    NotReadyError,
    OutputRequest,
    RequestRefusedError,
    ServerFailedError,
    Transport,
)
from defensemble._transport.base import ConnectionOptions
from defensemble._transport.factory import transport_from_url
from tests.support.facts import raises
from tests.support.scripted import http, scripted, sends

KEY = "the-key-of-the-tests-0123456789"
IMAGES = np.zeros((1, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "short",
        "with spaces in it and more",
        "line\r\nx-other: 0123456789",
        "é" * 20,
        "0123456789abcdef\n",
        "a" * 257,
        b"0" * 20,
        10**20,
    ],
)
def test_invalid_admin_keys_are_rejected(key: Any) -> None:
    makers: list[Callable[[], object]] = [
        lambda: GrpcTransport("grpc://localhost", ConnectionOptions(admin_key=key)),
        lambda: HttpTransport("http://localhost", ConnectionOptions(admin_key=key)),
        lambda: transport_from_url("grpc://localhost", ConnectionOptions(admin_key=key)),
        lambda: Client("http://localhost", admin_key=key),
    ]
    for make in makers:
        with pytest.raises(InputError, match="16 to 256") as caught:
            make()
        assert not key or str(key) not in str(caught.value)


@pytest.mark.parametrize("key", ["0123456789abcdef", "A_-z" * 64])
def test_valid_admin_keys_are_accepted_and_not_shown(key: str) -> None:
    for url in ("grpc://localhost", "http://localhost"):
        transport = transport_from_url(url, ConnectionOptions(admin_key=key))
        client = Client(url, "ensemble", admin_key=key)
        assert key not in f"{transport!r} {client!r} {client.transport!r}"
        client.close()
        transport.close()


def test_client_rejects_a_key_together_with_a_transport() -> None:
    with raises(InputError, "transport | admin_key") as caught:
        Client("fake", transport=FakeTransport({}), admin_key=KEY)
    assert KEY not in str(caught.value)


def test_a_client_exposes_its_transport_read_only() -> None:
    transport = FakeTransport({})
    client = Client("fake", transport=transport, timeout_s=3)
    assert client.transport is transport
    assert client.timeout_s == 3.0
    for name in ("transport", "timeout_s"):
        with pytest.raises(AttributeError):
            setattr(client, name, None)


def call_everything(transport: Transport) -> None:
    """Make every call of the protocol, admin calls last."""
    transport.infer("m", {"images": IMAGES}, [OutputRequest("y")], 5)
    transport.infer("m", {"images": IMAGES}, [OutputRequest("y")], 5, 3)
    transport.model_metadata("m", 5)
    transport.server_metadata(5)
    transport.models(5)
    transport.statistics(5)
    transport.live(5)
    transport.ready(5)
    transport.model_config("m", 5)
    transport.model_config("m", 5, 3)
    transport.repository_index(5)
    transport.load_model("a b/c", 5)
    transport.unload_model("a b/c", 5)


def test_over_http_only_admin_calls_carry_the_key() -> None:
    head = json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}]}).encode()
    responses = {
        "/infer": http(head + bytes(4), headers=f"Inference-Header-Content-Length: {len(head)}\r\n"),
        "/index": http(b"[]"),
        "/stats": http(b'{"model_stats":[]}'),
    }
    rest = http(b'{"name":"m","version":"1"}')

    def script(connection: socket.socket, received: bytes) -> None:
        target = received.split(b" ")[1].decode()
        connection.sendall(next((response for end, response in responses.items() if target.endswith(end)), rest))

    seen: dict[bool, list[tuple[str, bytes]]] = {}
    for key in (None, KEY):
        with scripted(script) as server:
            transport = HttpTransport(server.url, ConnectionOptions(admin_key=key))
            call_everything(transport)
            transport.close()
        seen[key is not None] = [(request.split(b" HTTP/1.1")[0].decode(), request) for request in server.requests]
        assert [target for target, _ in seen[key is not None]] == [
            "POST /v2/models/m/infer",
            "POST /v2/models/m/versions/3/infer",
            "GET /v2/models/m",
            "GET /v2",
            "GET /v2/models/stats",
            "GET /v2/models/stats",
            "GET /v2/health/live",
            "GET /v2/health/ready",
            "GET /v2/models/m/config",
            "GET /v2/models/m/versions/3/config",
            "POST /v2/repository/index",
            "POST /v2/repository/models/a%20b%2Fc/load",
            "POST /v2/repository/models/a%20b%2Fc/unload",
        ]
    assert not any(b"x-admin-key" in request for _, request in seen[False])
    assert not any(KEY.encode() in request for _, request in seen[True][:8])
    assert all(f"\r\nx-admin-key: {KEY}\r\n".encode() in request for _, request in seen[True][8:])
    assert [request.partition(b"\r\n\r\n")[2] for _, request in seen[True][10:]] == [b"{}"] * 3


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A gRPC server that records each call and its metadata, and rejects the calls in `refused`."""

    def __init__(self, refused: dict[str, tuple[Any, str]], *, ready: bool = True) -> None:
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        self._refused = refused
        self._ready = ready

    def _respond(self, method: str, request: Any, context: Any, response: Any) -> Any:
        metadata = {key: value for key, value in context.invocation_metadata() if "admin" in key}
        self.calls.append((method, str(request), metadata))
        if method in self._refused:
            context.abort(*self._refused[method])
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ModelInfer", request, context, service_pb2.ModelInferResponse())

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ModelMetadata", request, context, service_pb2.ModelMetadataResponse())

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ServerMetadata", request, context, service_pb2.ServerMetadataResponse())

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ModelStatistics", request, context, service_pb2.ModelStatisticsResponse())

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ServerLive", request, context, service_pb2.ServerLiveResponse(live=True))

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ServerReady", request, context, service_pb2.ServerReadyResponse(ready=self._ready))

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("ModelConfig", request, context, service_pb2.ModelConfigResponse())

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("RepositoryIndex", request, context, service_pb2.RepositoryIndexResponse())

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("RepositoryModelLoad", request, context, service_pb2.RepositoryModelLoadResponse())

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._respond("RepositoryModelUnload", request, context, service_pb2.RepositoryModelUnloadResponse())


@contextmanager
def serving(triton: Triton, key: str | None = KEY) -> Iterator[GrpcTransport]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"grpc://127.0.0.1:{port}", ConnectionOptions(admin_key=key))
    try:
        yield transport
    finally:
        transport.close()
        server.stop(0).wait(5)


def test_over_grpc_only_admin_calls_carry_the_key() -> None:
    sent = {"triton-grpc-protocol-x-admin-key": KEY}
    for key in (None, KEY):
        triton = Triton({})
        with serving(triton, key) as transport:
            call_everything(transport)
        assert [metadata for method, _, metadata in triton.calls if method == "ServerMetadata"] == [{}, {}], "one is the transport's own"
        calls = [call for call in triton.calls if call[0] != "ServerMetadata"]
        assert [(method, metadata) for method, _, metadata in calls] == [
            *((name, {}) for name in ("ModelInfer", "ModelInfer", "ModelMetadata", "ModelStatistics", "ModelStatistics")),
            *((name, {}) for name in ("ServerLive", "ServerReady")),
            *((name, sent if key else {}) for name in ("ModelConfig", "ModelConfig", "RepositoryIndex")),
            *((name, sent if key else {}) for name in ("RepositoryModelLoad", "RepositoryModelUnload")),
        ]
        requests = [request for _, request, _ in calls]
        assert ["version" in requests[call] for call in (0, 1, 7, 8)] == [False, True, False, True]
        assert requests[-2:] == ['model_name: "a b/c"\n'] * 2, "neither configurations nor files nor dependents"


UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "the reason")
CHANGES = {"RepositoryModelLoad": UNAVAILABLE, "RepositoryModelUnload": UNAVAILABLE}
CASES: dict[str, tuple[dict[str, tuple[Any, str]], bool, type[Exception], str]] = {
    "restricted": ({**CHANGES, "RepositoryIndex": UNAVAILABLE}, True, ForbiddenError, "not the server's"),
    "restricted, of a server with a broken model": (
        {**CHANGES, "RepositoryIndex": UNAVAILABLE},
        False,
        ForbiddenError,
        "not the server's",
    ),
    "on its way down": (
        {**CHANGES, "RepositoryIndex": UNAVAILABLE, "ServerReady": UNAVAILABLE, "ModelStatistics": UNAVAILABLE},
        True,
        NotReadyError,
        "later",
    ),
    "without model control": (CHANGES, True, RequestRefusedError, "--model-control-mode=explicit"),
}


@pytest.mark.parametrize("case", CASES)
def test_over_grpc_unavailable_has_three_meanings(case: str) -> None:
    refused, ready, kind, facts = CASES[case]
    with serving(Triton(refused, ready=ready)) as transport:
        calls: list[Callable[[], object]] = [lambda: transport.load_model("m", 5), lambda: transport.unload_model("m", 5)]
        if "RepositoryIndex" in refused:
            calls.append(lambda: transport.repository_index(5))
        for call in calls:
            with raises(kind, f"UNAVAILABLE | 'the reason' | {facts}") as caught:
                call()
            assert type(caught.value) is kind


def test_over_http_unavailable_has_two_meanings() -> None:
    unavailable = http(b'{"error":"the reason"}', "503 Service Unavailable")
    with scripted(sends(unavailable, http(b"[]"), unavailable)) as server:
        transport = HttpTransport(server.url, ConnectionOptions(admin_key=KEY))
        with raises(RequestRefusedError, "HTTP 503 | 'the reason' | --model-control-mode=explicit"):
            transport.load_model("m", 5)
        for call in (transport.load_model, transport.unload_model):
            with pytest.raises(NotReadyError, match="HTTP 503, 'the reason'"):
                call("m", 5)
        transport.close()


LONG = "; ".join(f"version {number} is at UNAVAILABLE state: 'why'" for number in range(80))


def test_a_rejection_is_quoted_in_full() -> None:
    assert 3000 < len(LONG) < 4000
    with scripted(sends(http(json.dumps({"error": LONG}).encode(), "400 Bad Request"))) as server:
        transport = HttpTransport(server.url)
        with pytest.raises(RequestRefusedError) as caught:
            transport.load_model("m", 5)
        assert repr(LONG) in str(caught.value)
        transport.close()
    with serving(Triton({"RepositoryModelLoad": (grpc.StatusCode.INVALID_ARGUMENT, LONG)})) as transport_of_grpc:
        with pytest.raises(RequestRefusedError) as caught:
            transport_of_grpc.load_model("m", 5)
        assert repr(LONG) in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_quoted_errors_are_truncated() -> None:
    with scripted(sends(http(json.dumps({"error": "x" * 9000}).encode(), "500 No"), http(b"<" * 9000, "500 No"))) as server:
        transport = HttpTransport(server.url)
        for length in (4000, 300):
            with pytest.raises(ServerFailedError) as caught:
                transport.load_model("m", 5)
            assert length < len(str(caught.value)) < length + 200
        transport.close()


@pytest.mark.parametrize("before", [0, 200])
def test_errors_redact_the_key_that_a_proxy_echoes(before: int) -> None:
    def echo(connection: socket.socket, received: bytes) -> None:
        connection.sendall(http(b"." * before + received, "403 Forbidden"))  # with 200, the cut of the page is within the key

    with scripted(echo) as server:
        transport = HttpTransport(server.url, ConnectionOptions(admin_key=KEY))
        with pytest.raises(ForbiddenError, match=r"x-admin-key: \(the adm") as caught:
            transport.repository_index(5)
        assert KEY[:8] not in str(caught.value)
        transport.close()
    with serving(Triton({"RepositoryIndex": (grpc.StatusCode.PERMISSION_DENIED, f"not with {KEY}")})) as transport_of_grpc:
        with raises(ForbiddenError, "(the admin key) | not the server's") as caught:
            transport_of_grpc.repository_index(5)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"{}", b"[1]", b"[[]]", b'[{"name":1}]', b'[{"name":"m","version":1.5}]', b'[{"name":"m","version":true}]', b"null", b"", b"["]
)
def test_an_invalid_repository_index_is_rejected(body: bytes) -> None:
    with scripted(sends(http(body))) as server:
        transport = HttpTransport(server.url)
        with pytest.raises(ServerFailedError, match="repository index"):
            transport.repository_index(5)
        transport.close()
