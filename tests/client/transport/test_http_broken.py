"""Responses that are cut, slow, too large or no HTTP: the right error in time, and the connection is not used again."""

from __future__ import annotations

import gzip
import socket
import threading
import time

import numpy as np
import pytest

from defensemble import (
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from tests.client.transport.test_http_transport import BODY, HEAD, VALUES, cut, infer, response_with
from tests.support.facts import assert_facts, raises
from tests.support.http_transports import KINDS, Connect, idle_connections
from tests.support.scripted import Script, http, scripted, sends


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Connect:
    return KINDS[request.param]


def silent(connection: socket.socket, received: bytes) -> None:
    pass


def trickling(connection: socket.socket, received: bytes) -> None:
    for byte in response_with(VALUES):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


BROKEN_RESPONSES: dict[str, tuple[Script, type[ServiceError], str]] = {
    "closes before it responds": (cut(b"", 0), ConnectionFailedError, "complete"),
    "closes within the head": (cut(response_with(VALUES), 20), ConnectionFailedError, "complete"),
    "closes within the body": (cut(response_with(VALUES), len(response_with(VALUES)) - 3), ConnectionFailedError, "bytes"),
    "sends nothing": (silent, DeadlineExceededError, "timeout_s"),
    "trickles": (trickling, DeadlineExceededError, "timeout_s"),
    "is not HTTP": (sends(b"\0\0\x12\x04\0\0\0\0\0\0\x03"), ServerFailedError, "gRPC port"),
    "has no length": (sends(b"HTTP/1.1 200 OK\r\n\r\n"), DeadlineExceededError, "timeout_s"),  # it would end with its connection
    "has a wrong length": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        ServerFailedError,
        "Invalid character in Content-Length",
    ),
    "has a negative length": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"),
        ServerFailedError,
        "Invalid character in Content-Length",
    ),
    "has an unknown encoding": (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"), ServerFailedError, "gzip"),
    "never ends its head": (sends(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000), ServerFailedError, "starts with"),
    "lacks the output": (sends(http(b'{"outputs":[]}')), ServerFailedError, "lacks | 'y'"),
    "states a huge length": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000000\r\n\r\n"),
        ServerFailedError,
        "1000000000000000 bytes | 2147483648",
    ),
    "states a length beyond any machine": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1" + b"0" * 30 + b"\r\n\r\n"),
        ServerFailedError,
        "Content-Length overflow",
    ),
    "states a length of too many digits": (
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
        ServerFailedError,
        "Content-Length overflow",
    ),
    "states a huge chunk": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
        ServerFailedError,
        "Chunk size overflow",
    ),
    "has JSON of too many digits": (
        sends(http(b"{}", headers="Inference-Header-Content-Length: " + "9" * 5000 + "\r\n")),
        ServerFailedError,
        "Inference-Header-Content-Length",
    ),
    "has JSON that is too deep": (
        sends(http(b"[" * 200_000, headers="Inference-Header-Content-Length: 200000\r\n")),
        ServerFailedError,
        "not JSON",
    ),
    "fails with JSON that is too deep": (sends(http(b"[" * 200_000, "500 Internal Server Error")), ServerFailedError, "HTTP 500"),
    "is not JSON": (sends(http(b"hello", headers="Inference-Header-Content-Length: 5\r\n")), ServerFailedError, "not JSON"),
    "is another JSON": (sends(http(b"[1,2]", headers="Inference-Header-Content-Length: 5\r\n")), ServerFailedError, "not a JSON object"),
    "lacks outputs": (sends(http(b"{}", headers="Inference-Header-Content-Length: 2\r\n")), ServerFailedError, "KeyError"),
    "forbids": (sends(http(b'{"error":"restricted"}', "403 Forbidden")), ForbiddenError, "HTTP 403, 'restricted'"),
    "does not know the model": (sends(http(b'{"error":"unknown"}', "404 Not Found")), ModelNotFoundError, "HTTP 404, 'unknown'"),
    "rejects": (sends(http(b'{"error":"shape"}', "400 Bad Request")), RequestRefusedError, "HTTP 400, 'shape'"),
    "is not ready": (sends(http(b"busy", "503 Service Unavailable")), NotReadyError, "HTTP 503, 'busy'"),
    "has another version": (sends(b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"), ServerFailedError, "HTTP/2.0 | HTTP/1.1"),
    "switches protocols": (sends(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), ServerFailedError, "protocol"),
    "has two lengths": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n"), ServerFailedError, "Content-Length"),
    "has endless trailers": (
        sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 40_000),
        ServerFailedError,
        "trailers | 65536",
    ),
    "has endless interim responses": (sends(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000), ServerFailedError, "65536"),
    "is longer than its tensors": (sends(http(BODY + b"123", headers=HEAD)), ServerFailedError, f"{len(BODY) + 3} bytes | {len(BODY)}"),
    "is shorter than its tensors": (sends(http(BODY[:-3], headers=HEAD)), ServerFailedError, "13 bytes | FP32 | [2, 2]"),
    "has an unknown content encoding": (sends(http(b"x", headers="Content-Encoding: br\r\n")), ServerFailedError, "'br' | gzip"),
    "has corrupt gzip": (sends(http(b"x" * 40, headers="Content-Encoding: gzip\r\n")), ServerFailedError, "gzip | corrupt"),
    "has cut gzip": (sends(http(gzip.compress(BODY)[:-9], headers=HEAD + "Content-Encoding: gzip\r\n")), ServerFailedError, "gzip | cut"),
    "failed": (sends(http(b"<html>", "500 Internal Server Error")), ServerFailedError, "HTTP 500, '<html>'"),
}


@pytest.mark.parametrize("case", BROKEN_RESPONSES)
def test_a_broken_response_raises_and_the_next_call_succeeds(case: str, connect: Connect) -> None:
    script, kind, facts = BROKEN_RESPONSES[case]
    is_fixed = threading.Event()

    def script_until_fixed(connection: socket.socket, received: bytes) -> None:
        (sends(response_with(VALUES)) if is_fixed.is_set() else script)(connection, received)

    with scripted(script_until_fixed) as server:
        transport = connect(server.url)
        started = time.monotonic()
        with raises(ServiceError, facts) as caught:
            infer(transport, timeout_s=0.2)
        assert type(caught.value) is kind
        assert_facts(str(caught.value), f"{server.url} | 'm'")
        assert time.monotonic() - started < 2
        assert not idle_connections(transport) or kind not in (ConnectionFailedError, DeadlineExceededError)
        is_fixed.set()
        np.testing.assert_array_equal(infer(transport), VALUES)
        assert len(idle_connections(transport)) == 1
        transport.close()
