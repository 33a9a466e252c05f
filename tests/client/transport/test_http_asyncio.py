"""The asynchronous HTTP transport and its event loops; interrupts of the blocking one; sockets that stay open."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defensemble import DeadlineExceededError, HttpTransport, OutputRequest
from defensemble._transport.http_transport import AsyncHttpTransport
from tests.client.transport.test_http_transport import IMAGES, response_with
from tests.support.scripted import http, scripted, sends

OUTPUTS = [OutputRequest("y")]
VERSION = http(b'{"name":"s","version":"1"}')


def sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the folder itself
            count += str(entry.readlink()).startswith("socket:")
    return count


def wait_until_closed(connection: socket.socket) -> None:
    connection.settimeout(5)
    assert connection.recv(1 << 20) == b""


def test_cancelling_closes_the_connection_at_once() -> None:
    hung: list[socket.socket] = []
    asked = threading.Event()

    def hangs(connection: socket.socket, received: bytes) -> None:
        hung.append(connection)
        asked.set()
        wait_until_closed(connection)

    async def main(url: str) -> float:
        transport = AsyncHttpTransport(url)
        before = sockets()
        task = asyncio.create_task(transport.live(60))
        while not asked.is_set():
            await asyncio.sleep(0.001)
        assert sockets() > before
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        took_s = time.monotonic() - began
        assert not transport._pool._idle
        await transport.close()
        return took_s

    with scripted(hangs) as server:
        assert asyncio.run(main(server.url)) < 1


def test_a_transport_is_used_from_several_event_loops() -> None:
    with scripted(sends(VERSION)) as server:
        transport = AsyncHttpTransport(server.url)
        for _ in range(3):
            assert asyncio.run(transport.server_metadata(5)).name == "s"
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(transport.server_metadata(5)).name == "s"
        loop.close()  # early: asyncio.run would end what is left
        assert asyncio.run(transport.server_metadata(5)).name == "s"
        assert server.connections == 1, "an idle connection belongs to no loop"
        asyncio.run(transport.close())


def test_an_event_loop_may_be_closed_during_a_call() -> None:
    def answers_metadata(connection: socket.socket, received: bytes) -> None:
        if received.startswith(b"GET /v2 "):
            connection.sendall(VERSION)

    with scripted(answers_metadata) as server:
        transport = AsyncHttpTransport(server.url)
        loop = asyncio.new_event_loop()
        coroutine = transport.live(60)
        waiting = loop.create_task(coroutine)
        while not server.requests:
            loop.run_until_complete(asyncio.sleep(0.001))
        before = sockets()
        loop.close()
        coroutine.close()
        assert sockets() == before - 1 - 2, "the connection, and the two sockets of the loop"
        assert asyncio.run(transport.server_metadata(5)).name == "s"
        asyncio.run(transport.close())
        waiting._log_destroy_pending = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("tasks", [64, pytest.param(200, marks=pytest.mark.slow)])
def test_many_tasks_share_a_transport(tasks: int) -> None:
    open_at_once = set()

    def responds(connection: socket.socket, received: bytes) -> None:
        open_at_once.add(connection)
        size = int(received.partition(b"Inference-Header-Content-Length: ")[2].partition(b"\r\n")[0])
        content = received.partition(b"\r\n\r\n")[2][size:]
        connection.sendall(response_with(np.frombuffer(content, np.float32).reshape(2, -1)))

    async def main(url: str) -> None:
        transport = AsyncHttpTransport(url)

        async def call(number: int) -> None:
            images = np.full_like(IMAGES, number)
            for _ in range(3):
                outputs = await transport.infer("m", {"images": images}, OUTPUTS, 20)
                assert (outputs["y"] == number).all()

        await asyncio.gather(*map(call, range(tasks)))
        assert len(transport._pool._idle) <= tasks
        await transport.close()
        assert not transport._pool._idle

    gc.collect()  # sockets that other tests have left
    before = sockets()
    with scripted(responds) as server:
        asyncio.run(main(server.url))
        assert server.connections <= tasks
    del responds
    open_at_once.clear()
    gc.collect()
    assert sockets() == before


@pytest.mark.parametrize("kind", [HttpTransport, AsyncHttpTransport])
def test_a_slow_lookup_ends_at_the_deadline_and_blocks_no_event_loop(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looking_up, found = threading.Event(), threading.Event()

    def slow(*arguments: Any, flags: int = 0, **options: Any) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        looking_up.set()
        found.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    transport = kind("http://slow.example")

    async def main() -> None:
        task = asyncio.create_task(transport.live(0.1))
        while not looking_up.is_set():
            await asyncio.sleep(0.001)
        await task

    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        transport.live(0.1) if kind is HttpTransport else asyncio.run(main())
    assert time.monotonic() - began < 5, "neither the call nor the end of the loop waits for the resolver"
    found.set()


def test_a_keyboard_interrupt_returns_at_once_and_drops_the_connection() -> None:
    def interrupts(connection: socket.socket, received: bytes) -> None:
        if b" /v2/health/" in received:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            connection.sendall(VERSION)

    with scripted(interrupts) as server:
        transport = HttpTransport(server.url)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            transport.live(60)
        assert time.monotonic() - began < 5
        assert transport.server_metadata(5).name == "s"
        assert server.connections == 2
        transport.close()


LEFT_OPEN = """
import asyncio, sys, warnings
from defensemble import HttpTransport
from defensemble._transport.http_transport import AsyncHttpTransport
blocking, asynchronous = HttpTransport(sys.argv[1]), AsyncHttpTransport(sys.argv[1])
blocking.server_metadata(5)
loop = asyncio.new_event_loop()
loop.run_until_complete(asynchronous.server_metadata(5))
loop.close()
dropped = HttpTransport(sys.argv[1])
dropped.server_metadata(5)
del dropped
assert "grpc" not in sys.modules
print("done")
"""


def test_connections_that_are_left_open_cause_no_warning() -> None:
    with scripted(sends(VERSION)) as server:
        command = [sys.executable, "-W", "error", "-c", LEFT_OPEN, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
