"""HTTP connections: time limits, the end of a response, and forks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from defensemble import ConnectionFailedError, DeadlineExceededError, ServerFailedError, ServiceError
from tests.client.transport.test_grpc_transport import good, serving
from tests.support.facts import assert_facts
from tests.support.http_transports import KINDS, Connect, idle_connections
from tests.support.scripted import free_port, http, scripted, sends

VERSION = b'{"name": "triton", "version": "1"}'


def addresses(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    """Make every host resolve to these ports of this machine."""
    candidates = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: candidates)


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest) -> Connect:
    return KINDS[request.param]


@pytest.fixture
def silent() -> Any:
    """A port that neither accepts nor refuses connections: its queue is full."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    place = listening.getsockname()
    waiting = []
    for _ in range(8):
        connecting = socket.socket()
        connecting.settimeout(0.1)
        waiting.append(connecting)
        if connecting.connect_ex(place) != 0:
            break
    yield place[1]
    for connecting in waiting:
        connecting.close()
    listening.close()


def test_a_timeout_covers_all_addresses_of_a_host(connect: Connect, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses(monkeypatch, *[silent] * 4)
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        connect("http://many.example").live(0.5)
    assert time.monotonic() - began < 1.5


def test_every_address_of_a_host_is_tried(connect: Connect, silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(sends(http(VERSION))) as server:
        addresses(monkeypatch, silent, free_port(), server.port)
        transport = connect("http://many.example")
        assert transport.server_metadata(2).name == "triton"
        transport.close()
    addresses(monkeypatch, free_port())
    with pytest.raises(ConnectionFailedError, match="connection refused"):
        connect("http://many.example").live(1)


@pytest.mark.parametrize("head", ["HTTP/1.1 {}\r\nConnection: close\r\n", "HTTP/1.1 {}\r\nConnection: x, Close\r\n", "HTTP/1.0 {}\r\n"])
def test_a_response_may_end_with_its_connection(connect: Connect, head: str) -> None:
    responses = {
        "200 OK": VERSION * 1,
        "502 Bad Gateway": b"<html>" + bytes(100_000),
        "503 Service Unavailable": b"",
        "404 Not Found": b"no",
    }
    for status, body in responses.items():

        def script(connection: socket.socket, received: bytes, status: str = status, body: bytes = body) -> None:
            connection.sendall(head.format(status).encode() + b"\r\n" + body[:5])
            time.sleep(0.01)
            connection.sendall(body[5:])
            connection.shutdown(socket.SHUT_RDWR)

        with scripted(script) as server:
            transport = connect(server.url)
            if status == "200 OK":
                assert transport.server_metadata(5).name == "triton"
            else:
                with pytest.raises(ServiceError, match=f"HTTP {status[:3]}"):
                    transport.server_metadata(5)
            assert not idle_connections(transport)
            transport.close()


def test_an_endless_response_is_bounded(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._transport.http_parser._MAX_BODY_BYTES", 100_000)

    def endless(connection: socket.socket, received: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(bytes(1000))

    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"fff0\r\n" + bytes(0xFFF0) + b"\r\n") * 2
    for script in (endless, sends(chunks)):
        with scripted(script) as server:
            with pytest.raises(ServerFailedError, match="100000"):
                connect(server.url).server_metadata(5)


FORK_OVER_HTTP = """
import os, sys
from defensemble import HttpTransport
transport = HttpTransport(sys.argv[1])
before = transport.server_metadata(5).version
child = os.fork()
mine = {transport.server_metadata(5).version for _ in range(50)}
if child == 0:
    transport.close()
    print("child", *mine, flush=True)
    os._exit(0)
os.waitpid(child, 0)
mine.add(transport.server_metadata(5).version)
print("parent", before, *mine)
"""

FORK_OVER_GRPC = """
import os, signal, sys
from defensemble import Client, ConnectionFailedError, GrpcTransport
transport = GrpcTransport(sys.argv[1])
assert transport.live(5)
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
        transport.live(5)
    except ConnectionFailedError as error:
        print(error)
    transport.close()
    new = GrpcTransport(sys.argv[1])
    print("new", new.live(5), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("parent", transport.live(5))
transport.close()
"""


def run(script: str, url: str) -> list[str]:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script, url], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_forked_child_makes_its_own_http_connections() -> None:
    def sends_the_port(connection: socket.socket, received: bytes) -> None:
        document = {"name": "triton", "version": str(connection.getpeername()[1])}
        connection.sendall(http(json.dumps(document).encode()))

    with scripted(sends_the_port) as server:
        (_, child), (_, before, parent) = (line.split() for line in run(FORK_OVER_HTTP, server.url))
    assert before == parent, "the parent keeps its connection"
    assert child != parent


def test_grpc_calls_in_a_forked_child_raise() -> None:
    with serving(good) as (_, transport):
        message, new, parent = run(FORK_OVER_GRPC, transport.url)
    assert_facts(message, "gRPC | fork | process")
    assert_facts(message, "http://")
    assert (new, parent) == ("new True", "parent True")
