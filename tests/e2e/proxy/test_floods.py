"""Requests that end Triton or take its memory, floods, and slow callers: what they do through the proxy, and some of them without it."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest

from benchmarks.common.http2 import CONTINUATION, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame
from benchmarks.common.nginx import Nginx
from benchmarks.common.processes import pss_bytes
from benchmarks.common.raw_http import chunked, request
from defensemble import Client
from defensemble_server import Server, serve
from tests.support import http2, tiny
from tests.support.calls import FREE
from tests.support.nginx import nginx_before
from tests.support.raw_http import INFER, status_of
from tests.support.tcp_proxy import until

from .harmless import unharmed

pytestmark = pytest.mark.slow
INFER_CALL = "/inference.GRPCInferenceService/ModelInfer"
ANSWERED_S = 20.0  # within which others are answered, on a busy machine
CUT_OFF_S = 30.0  # the limits are 5 s
LETHAL = {
    "120 kB of brackets": (b"[" * 120_000, []),
    "200 kB of nested data": (
        b'{"inputs":[{"name":"images","shape":[1],"datatype":"FP32","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
        [],
    ),
    "2,000,000 chunks": (chunked(bytes(2_000_000), 1), ["Transfer-Encoding: chunked", "Inference-Header-Content-Length: 2"]),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `alpha`, `beta` and their ensemble, which may be ended."""
    folder = tiny.write_repository(tmp_path_factory.mktemp("flooded") / "repository", weight={"beta": 3.0})
    with serve(folder, FREE) as server:
        yield server
    assert tiny.leftovers(folder) == []


@pytest.fixture(scope="module")
def nginx(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx_before(server, tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


@pytest.mark.parametrize("name", LETHAL)
def test_a_request_that_ends_the_server_is_stopped(server: Server, nginx: Nginx, name: str) -> None:
    body, headers = LETHAL[name]
    with unharmed(server, nginx):
        # The chunks become one body, which Triton refuses.
        assert status_of(nginx.http_port, request("POST", INFER, body, headers)) == (500 if headers else 413)


@pytest.mark.parametrize("name", LETHAL)
def test_without_the_proxy_it_ends_the_server(tmp_path: Path, name: str) -> None:
    """If this fails, the core is another one, and the page on the proxy needs a new table."""
    body, headers = LETHAL[name]
    with serve(tiny.write_repository(tmp_path / "repository"), FREE) as server:
        assert status_of(server.state.http_port, request("POST", INFER, body, headers)) is None
        until(lambda: "died" in [event.kind for event in server.events()])


def test_an_inflating_body_is_stopped(server: Server, nginx: Nginx) -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(coder.compress(b" " * 1_000_000) for _ in range(300)) + coder.flush()
    headers = ["Content-Encoding: gzip", "Content-Type: application/json"]
    with unharmed(server, nginx):
        assert status_of(nginx.http_port, request("POST", INFER, body, headers)) == 415
    before = pss_bytes(server.triton_pid)
    assert status_of(server.state.http_port, request("POST", INFER, body, headers)) == 500
    assert pss_bytes(server.triton_pid) - before > 200 * 10**6


def test_a_message_of_a_gigabyte_is_stopped(server: Server, nginx: Nginx) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with unharmed(server, nginx), grpc.insecure_channel(f"127.0.0.1:{nginx.grpc_port}", options) as channel:
        call = channel.unary_unary(INFER_CALL, request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(10**9), timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


SLOW = {
    "nothing": b"",
    "half a header": b"POST /v2/models/ensemble/infer HTTP/1.1\r\nHost: lo",
    "no body": request("POST", INFER, headers=["Content-Length: 1000"]),
    "half a body": request("POST", INFER, b"{", ["Content-Length: 1000"]),
}


@contextmanager
def connected(port: int, count: int, sent: bytes, addresses: int) -> Iterator[list[socket.socket]]:
    """Open connections to a port from several addresses of this machine, and send the same bytes over each."""
    with ExitStack() as stack:
        connections = []
        for number in range(count):
            source = (f"127.0.1.{number % addresses + 1}", 0)
            connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, source)))
            connections[-1].sendall(sent)
        yield connections


@pytest.mark.parametrize("kind", SLOW)
def test_500_slow_callers_do_not_keep_others_from_their_answers_and_are_cut_off(server: Server, nginx: Nginx, kind: str) -> None:
    with unharmed(server, nginx), connected(nginx.http_port, 500, SLOW[kind], addresses=5) as connections:
        with Client(nginx.http_url, model="ensemble") as client:
            for _ in range(20):
                client.predict(tiny.images(1), timeout_s=ANSWERED_S)
        deadline = time.monotonic() + CUT_OFF_S
        for connection in connections:
            connection.settimeout(max(deadline - time.monotonic(), 0.1))
            with suppress(ConnectionResetError):
                while connection.recv(1 << 16):
                    pass


def test_500_slow_callers_of_grpc(server: Server, nginx: Nginx) -> None:
    """Each address may take some of the requests in flight, until it stays silent for 5 s."""
    start = PREFACE + frame(SETTINGS)
    start += frame(HEADERS, END_HEADERS, 1, http2.call_fields(INFER_CALL))
    with unharmed(server, nginx), connected(nginx.grpc_port, 500, start, addresses=1):
        with Client(nginx.grpc_url, model="ensemble") as client:
            for _ in range(20):
                client.predict(tiny.images(1), timeout_s=ANSWERED_S)


FLOODS = {
    "streams that are reset": lambda stream: (
        frame(HEADERS, END_HEADERS, stream, http2.call_fields(INFER_CALL)) + frame(RST_STREAM, 0, stream, bytes(4))
    ),
    "streams that stay open": lambda stream: frame(HEADERS, END_HEADERS, stream, http2.call_fields(INFER_CALL)),
    "pings": lambda stream: frame(PING, 0, 0, bytes(8)),
    "settings": lambda stream: frame(SETTINGS),
    "windows": lambda stream: frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")),
    "unknown frames": lambda stream: frame(0xEE, 0, 0, bytes(8)),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_floods_of_http2(server: Server, nginx: Nginx, kind: str) -> None:
    sent = b"".join(FLOODS[kind](2 * number + 1) for number in range(20_000))
    with Client(nginx.http_url, model="ensemble") as client:

        def flood() -> None:
            with http2.connect(nginx.grpc_port) as connection:
                http2.send_and_drain(connection, sent)
                client.predict(tiny.images(1), timeout_s=ANSWERED_S)

        flood()  # the first one makes Triton's gRPC front end grow by 14 to 17 MiB, once
        with unharmed(server, nginx, grows_mib=16):
            for _ in range(3):
                flood()


def test_headers_without_end(server: Server, nginx: Nginx) -> None:
    begun = frame(HEADERS, 0, 1, http2.call_fields(INFER_CALL))
    more = frame(CONTINUATION, 0, 1, http2.field("x-a", "a" * 100) * 100)
    with unharmed(server, nginx), http2.connect(nginx.grpc_port) as connection:
        http2.send_and_drain(connection, begun + more * 1000)


def test_floods_of_connections_and_of_random_bytes(server: Server, nginx: Nginx) -> None:
    generator = np.random.default_rng(1)
    with unharmed(server, nginx, grows_mib=16):
        for number in range(1000):
            port = (nginx.http_port, nginx.grpc_port)[number % 2]
            beginning = (b"", b"POST /v2/models/ensemble/infer HTTP/1.1\r\n", PREFACE)[number % 3]
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.sendall(beginning + generator.bytes(int(generator.integers(1, 3000))))
