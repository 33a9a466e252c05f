from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from defensemble import (
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    DefensembleError,
    ForbiddenError,
    HttpTransport,
    InputError,
    OutputRequest,
    ServerFailedError,
    ServiceError,
    Transport,
)
from defensemble._transport.base import ConnectionOptions, TlsFiles
from defensemble._transport.http_tensors import _parse_head_once
from tests.support.certificates import make_certificate
from tests.support.facts import raises
from tests.support.http_transports import KINDS, Connect, idle_connections
from tests.support.scripted import Script, free_port, http, scripted, sends

IMAGES = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4) / np.float32(32)


def body_with(values: np.ndarray[Any, Any]) -> tuple[str, bytes]:
    """The header line and the body of a response."""
    document = {"outputs": [{"name": "y", "datatype": "FP32", "shape": values.shape, "parameters": {"binary_data_size": values.nbytes}}]}
    head = json.dumps(document).encode()
    return f"Inference-Header-Content-Length: {len(head)}\r\n", head + values.tobytes()


def response_with(values: np.ndarray[Any, Any]) -> bytes:
    headers, body = body_with(values)
    return http(body, headers=headers)


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Connect:
    return KINDS[request.param]


def infer(transport: Transport, timeout_s: float = 5.0, images: np.ndarray[Any, Any] = IMAGES) -> Any:
    return transport.infer("m", {"images": images}, [OutputRequest("y")], timeout_s)["y"]


VALUES = np.array([[1, 2], [3, 4]], np.float32)
HEAD, BODY = body_with(VALUES)


def test_a_request_follows_the_protocol(connect: Connect) -> None:
    texts = b"\x03\0\0\x001:0" * 2
    tensors = [
        {"name": "y", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}},
        {"name": "z", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(texts)}},
    ]
    response = json.dumps({"id": "call 7", "model_version": "3", "outputs": tensors}, separators=(",", ":")).encode()
    lengths = f"Inference-Header-Content-Length: {len(response)}\r\n"
    with scripted(sends(http(response + VALUES.tobytes() + texts, headers=lengths))) as server:
        transport = connect(server.url)
        outputs = transport.infer(
            "a b/c",
            {"images": IMAGES[:, :, ::-1]},
            [OutputRequest("y"), OutputRequest("z", 3)],
            5,
            request_id="call 7",
            headers={"traceparent": "00-01-02-00"},
        )
        np.testing.assert_array_equal(outputs["y"], VALUES)
        assert outputs["z"].tolist() == [[b"1:0"], [b"1:0"]]
        assert outputs.model_version == "3"
        with raises(InputError, "'traceparent' | printable ASCII"):
            transport.infer("m", {"images": IMAGES}, [OutputRequest("y")], 5, headers={"traceparent": "a\r\nx-admin-key: b"})
        transport.close()
    assert len(server.requests) == 1
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/models/a%20b%2Fc/infer HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:])
    size = int(headers["Inference-Header-Content-Length"])
    assert int(headers["Content-Length"]) == len(body) == size + IMAGES.nbytes
    assert headers["traceparent"] == "00-01-02-00"
    request = json.loads(body[:size])
    assert request["id"] == "call 7"
    assert request["inputs"] == [{"name": "images", "shape": [2, 1, 4, 4], "datatype": "FP32", "parameters": {"binary_data_size": 128}}]
    assert request["outputs"] == [
        {"name": "y", "parameters": {"binary_data": True}},
        {"name": "z", "parameters": {"binary_data": True, "classification": 3}},
    ]
    np.testing.assert_array_equal(np.frombuffer(body[size:], np.float32).reshape(IMAGES.shape), IMAGES[:, :, ::-1])


@pytest.mark.parametrize(
    "body",
    [b'{"error": "ValueError: a defect"}', b'Traceback (most recent call last):\n  File "a.py", line 1, in f\nValueError: a defect\n'],
)
def test_no_request_follows_an_exception_of_the_server(connect: Connect, body: bytes) -> None:
    # uvicorn, in which KServe and MLServer run, closes the connection soon after such a response.
    with scripted(sends(http(body, "500 Internal Server Error"))) as server:
        transport = connect(server.url)
        for _ in range(2):
            with pytest.raises(ServerFailedError, match="'ValueError: a defect'"):
                transport.server_metadata(5)
        assert server.connections == 2
        transport.close()


def test_connections_are_kept_and_not_shared_between_threads(connect: Connect) -> None:
    with scripted(sends(response_with(VALUES))) as server:
        transport = connect(server.url)
        for _ in range(5):
            infer(transport)
        assert server.connections == 1
        barrier = threading.Barrier(4)
        got: list[list[float]] = []

        def call() -> None:
            barrier.wait(5)
            got.extend(infer(transport)[1].tolist() for _ in range(20))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert got == [[3.0, 4.0]] * 80
        assert server.connections <= 4
        transport.close()
        transport.close()


def test_a_connection_closed_while_idle_is_not_reused(connect: Connect) -> None:
    def closes(connection: socket.socket, received: bytes) -> None:
        connection.sendall(response_with(VALUES))
        connection.shutdown(socket.SHUT_RDWR)

    with scripted(closes) as server:
        transport = connect(server.url)
        for _ in range(3):
            np.testing.assert_array_equal(infer(transport), VALUES)
            deadline = time.monotonic() + 5
            while (idle := idle_connections(transport)) and idle[0].is_usable() and time.monotonic() < deadline:
                time.sleep(0.001)
        assert server.connections == 3
        transport.close()


def test_large_bodies_are_sent_and_received_completely(connect: Connect) -> None:
    big = np.random.default_rng(0).random((64, 3, 32, 32), np.float32)

    def echo(connection: socket.socket, received: bytes) -> None:
        head, _, body = received.partition(b"\r\n\r\n")
        headers = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
        while len(body) < int(headers["Content-Length"]):
            body += connection.recv(1 << 20)
        values = np.frombuffer(body[int(headers["Inference-Header-Content-Length"]) :], np.float32).reshape(64, -1)
        response = response_with(values)
        for start in range(0, len(response), 100_000):
            connection.sendall(response[start : start + 100_000])

    with scripted(echo) as server:
        transport = connect(server.url)
        np.testing.assert_array_equal(infer(transport, images=big), big.reshape(64, -1))
        transport.close()


def test_chunks_and_interim_responses_are_read(connect: Connect) -> None:
    complete = response_with(VALUES)
    head, _, body = complete.partition(b"\r\n\r\n")
    kept = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    chunked = b"HTTP/1.1 100 Continue\r\n\r\n" + kept + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    for start in range(0, len(body), 7):
        part = body[start : start + 7]
        chunked += f"{len(part):X};extension=1\r\n".encode() + part + b"\r\n"
    chunked += b"0\r\nTrailer: x\r\n\r\n"

    def slowly(connection: socket.socket, received: bytes) -> None:
        for start in range(0, len(chunked), 11):
            connection.sendall(chunked[start : start + 11])

    with scripted(slowly) as server:
        transport = connect(server.url)
        for _ in range(2):
            np.testing.assert_array_equal(infer(transport), VALUES)
        assert server.connections == 1
        transport.close()


def cut(response: bytes, at: int) -> Script:
    def script(connection: socket.socket, received: bytes) -> None:
        connection.sendall(response[:at])
        connection.shutdown(socket.SHUT_RDWR)

    return script


def test_the_timeout_covers_sending(connect: Connect) -> None:
    def deaf(connection: socket.socket, received: bytes) -> None:
        time.sleep(1)

    with scripted(deaf) as server:
        transport = connect(server.url)
        with pytest.raises(DeadlineExceededError):
            infer(transport, 0.2, np.zeros((4000, 1, 64, 64), np.float32))
        transport.close()


def test_a_missing_server_is_one_plain_sentence(connect: Connect) -> None:
    transport = connect(f"http://127.0.0.1:{free_port()}")
    calls: list[Callable[[], object]] = [lambda: infer(transport), lambda: transport.models(1), lambda: transport.live(1)]
    for call in calls:
        with raises(ConnectionFailedError, f"cannot connect to {transport.url} | connection refused | defensemble serve") as caught:
            call()
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert "Errno" not in str(caught.value)
    with raises(ConnectionFailedError, "http://no-such-host.invalid:8000 | host name cannot be resolved"):
        connect("http://no-such-host.invalid").live(1)


def test_health_statuses(connect: Connect) -> None:
    with scripted(
        sends(http(b""), http(b"", "400 Bad Request"), http(b"", "503 Service Unavailable"), http(b"", "403 Forbidden"))
    ) as server:
        transport = connect(server.url)
        assert transport.live(1) is True
        assert transport.ready(1) is False
        assert transport.ready(1) is False
        with pytest.raises(ForbiddenError):
            transport.ready(1)
        transport.close()


@pytest.mark.parametrize(
    "body", [b"{}", b'{"name":"m","inputs":[{}]}', b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":["q"]}]}', b"[]", b""]
)
def test_invalid_metadata_is_rejected(body: bytes) -> None:
    with scripted(sends(http(body))) as server:
        transport = HttpTransport(server.url)
        for call in (lambda: transport.model_metadata("m", 1), lambda: transport.models(1), lambda: transport.server_metadata(1)):
            with pytest.raises(ServerFailedError):
                call()
        transport.close()


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_a_service_error(garbage: bytes, with_head: bool) -> None:
    response = http(garbage, headers=f"Inference-Header-Content-Length: {len(garbage) // 2}\r\n") if with_head else garbage
    with scripted(cut(response, len(response))) as server:
        transport = HttpTransport(server.url)
        with pytest.raises(ServiceError):
            infer(transport, 1.0)
        transport.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def mostly(right: object) -> st.SearchStrategy[Any]:
    return st.just(right) | st.just(right) | st.just(right) | JSON


def tensors(name: str, datatype: str, shape: list[int], size: int = 0) -> st.SearchStrategy[Any]:
    shapes = mostly(shape) | st.lists(st.integers(-2, 9) | st.sampled_from([10**6, 2**31, 2**63, 10**30]), max_size=5)
    described: dict[str, st.SearchStrategy[Any]] = {"name": mostly(name), "datatype": mostly(datatype), "shape": shapes}
    if size:
        described["parameters"] = st.fixed_dictionaries({"binary_data_size": mostly(size)}) | JSON
    tensor = st.fixed_dictionaries(described) | JSON
    return st.tuples(tensor).map(list) | st.lists(tensor, max_size=2) | JSON


METADATA = (
    st.fixed_dictionaries(
        {
            "name": mostly("m"),
            "platform": mostly("ensemble"),
            "inputs": tensors("images", "FP32", [-1, 1, 4, 4]),
            "outputs": tensors("probabilities", "FP32", [-1, 2]),
        }
    )
    | JSON
)
CONFIG = st.fixed_dictionaries({"max_batch_size": mostly(8), "ensemble_scheduling": mostly({"step": [{"model_name": "a"}]})}) | JSON
CLASSES = st.fixed_dictionaries({"outputs": tensors("probabilities", "BYTES", [1, 2], 22)}) | JSON
SCORES = st.fixed_dictionaries({"outputs": tensors("probabilities", "FP32", [2, 2], 16)}) | JSON
TEXTS = b"".join(len(text).to_bytes(4, "little") + text for text in (b"0.5:0:a", b"0.5:1:b"))


@given(METADATA, CONFIG, CLASSES, SCORES, st.just(TEXTS) | st.binary(max_size=40), st.just(VALUES.tobytes()) | st.binary(max_size=40))
def test_arbitrary_json_is_parsed_or_raises(metadata: Any, config: Any, classes: Any, scores: Any, texts: bytes, numbers: bytes) -> None:
    def with_data(document: Any, content: bytes) -> bytes:
        head = json.dumps(document).encode()
        return http(head + content, headers=f"Inference-Header-Content-Length: {len(head)}\r\n")

    def script(connection: socket.socket, received: bytes) -> None:
        if b"/infer HTTP/1.1\r\n" in received:
            connection.sendall(with_data(classes, texts) if b'"classification"' in received else with_data(scores, numbers))
        else:
            connection.sendall(http(json.dumps(config if b"/config " in received else metadata).encode()))

    with scripted(script) as server, Client(server.url, "m", timeout_s=5) as client:
        try:
            assert client.predict(IMAGES).probabilities.shape == (2, len(client.describe().class_names))
        except DefensembleError:
            pass
        for call in (client.models, client.server_metadata, client.classifiers):
            with contextlib.suppress(DefensembleError):
                call()


def test_https_checks_the_certificate(tmp_path: Path, connect: Connect) -> None:
    make_certificate(tmp_path, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with scripted(sends(response_with(VALUES)), context) as server:
        url = f"https://127.0.0.1:{server.port}"
        trusting = connect(url, ConnectionOptions(tls=TlsFiles(tmp_path / "server.pem")))
        for _ in range(3):
            np.testing.assert_array_equal(infer(trusting), VALUES)
        assert server.connections == 1
        trusting.close()
        with raises(ConnectionFailedError, f"{url} | certificate is not trusted | tls=TlsFiles") as caught:
            infer(connect(url))
        assert not caught.value.is_retryable


def test_https_shows_the_certificate_of_the_client(tmp_path: Path, connect: Connect) -> None:
    for name in ("server", "client"):
        make_certificate(tmp_path, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    context.load_verify_locations(tmp_path / "client.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with scripted(sends(response_with(VALUES)), context) as server:
        url = f"https://127.0.0.1:{server.port}"
        known = connect(url, ConnectionOptions(tls=TlsFiles(tmp_path / "server.pem", tmp_path / "client.pem", tmp_path / "client.key")))
        for _ in range(2):
            np.testing.assert_array_equal(infer(known, images=np.zeros((64, 3, 32, 32), np.float32)), VALUES)
        known.close()
        unknown = connect(url, ConnectionOptions(tls=TlsFiles(tmp_path / "server.pem")))
        with raises(ConnectionFailedError, "certificate required") as caught:
            infer(unknown)
        assert not caught.value.is_retryable


def test_outputs_as_json_in_a_binary_response_do_not_stay_in_memory(connect: Connect) -> None:
    tensor = {"name": "y", "datatype": "FP32", "shape": [2000], "data": [0.25] * 2000}
    head = json.dumps({"outputs": [tensor]}).encode()
    response = http(head, headers=f"Inference-Header-Content-Length: {len(head)}\r\n")
    before = _parse_head_once.cache_info().currsize
    with scripted(sends(response)) as server:
        outputs = connect(server.url).infer("alpha", {"images": IMAGES}, [OutputRequest("y")], 5)
    assert outputs["y"].shape == (2000,)
    assert _parse_head_once.cache_info().currsize == before
