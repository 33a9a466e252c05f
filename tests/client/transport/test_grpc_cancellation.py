"""How gRPC calls end whose callers give up: never cut off on a Triton before 2.59, which crashes if a channel closes during a call."""

from __future__ import annotations

import asyncio
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from defensemble import ConnectionFailedError, DeadlineExceededError, GrpcTransport, OutputRequest
from defensemble._transport.grpc_channel import crashes_on_close
from defensemble._transport.grpc_transport import AsyncGrpcTransport
from defensemble_server import Server
from tests.support import tiny
from tests.support.grpc_servers import NEW, OLD, ObservingServer, observing

IMAGES = {"images": np.zeros((2, 1, 4, 4), np.float32)}
OUTPUTS = [OutputRequest("y")]


def run(outcome: Any) -> Any:
    """Return a result, of a coroutine after running it in an event loop of its own."""
    return asyncio.run(outcome) if asyncio.iscoroutine(outcome) else outcome


def infer(transport: Any, timeout_s: float) -> Any:
    return run(transport.infer("m", IMAGES, OUTPUTS, timeout_s))


@contextmanager
def transport_to(server: ObservingServer, kind: str) -> Iterator[Any]:
    transport = GrpcTransport(server.url) if kind == "sync" else AsyncGrpcTransport(server.url)
    yield transport
    run(transport.close())


def learn(transport: Any) -> None:
    """Wait until the transport knows the server's version."""
    assert run(transport.live(5))
    channel = getattr(transport, "_calls", transport)._channel
    deadline = time.monotonic() + 5
    while channel.server is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


both = pytest.mark.parametrize("kind", ["sync", "async"])


@pytest.mark.parametrize(
    ("name", "version", "crashes"),
    [
        ("triton", "2.51.0", True),
        ("triton", "2.58.9", True),
        ("triton", "2.59.0", False),
        ("triton", "2.100.1", False),
        ("triton", "3.0.0", False),
        ("triton", "1.99", True),
        ("triton", "", True),
        ("triton", "nightly", True),
        ("mlserver", "1.7.1", False),
    ],
)
def test_which_servers_crash(name: str, version: str, crashes: bool) -> None:
    assert crashes_on_close(name, version) is crashes


@both
@pytest.mark.parametrize(("name", "version", "is_sent"), [("triton", OLD, False), ("triton", NEW, True), ("mlserver", "1.7", True)])
def test_the_deadline_is_sent_where_it_is_safe(kind: str, name: str, version: str, is_sent: bool) -> None:
    with observing(version, name=name) as server, transport_to(server, kind) as transport:
        learn(transport)
        infer(transport, 30)
        assert [left_s is not None and 25 < left_s < 31 for left_s in server.left_s] == [is_sent]


@both
def test_an_expired_call_runs_out_on_a_server_that_would_crash(kind: str) -> None:
    with observing(OLD, hold_s=10) as server, transport_to(server, kind) as transport:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="timed out") as caught:
            infer(transport, 0.1)
        assert 0.1 <= time.monotonic() - started < 1
        assert not caught.value.is_retryable
        server.wait_for(1, server.requests)
        threading.Timer(0.1, server.release.set).start()
        run(transport.close())  # waits
        assert server.endings == [True]


@both
def test_an_expired_call_is_cancelled_on_other_servers(kind: str) -> None:
    with observing(NEW, hold_s=10) as server, transport_to(server, kind) as transport:
        learn(transport)
        with pytest.raises(DeadlineExceededError):
            infer(transport, 0.1)
        server.wait_for(1, server.endings)
        assert server.endings == [False]


@pytest.mark.parametrize(("version", "ending"), [(OLD, True), (NEW, False)])
def test_a_cancelled_task_ends_at_once(version: str, ending: bool) -> None:
    async def cancel(transport: AsyncGrpcTransport, server: ObservingServer) -> float:
        task = asyncio.create_task(transport.infer("m", IMAGES, OUTPUTS, 30))
        await asyncio.to_thread(server.wait_for, 1, server.requests)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    with observing(version, hold_s=10) as server, transport_to(server, "async") as transport:
        learn(transport)
        assert asyncio.run(cancel(transport, server)) < 0.5
        if ending:
            server.release.set()
        server.wait_for(1, server.endings)
        assert server.endings == [ending]


@pytest.mark.parametrize(("version", "ending"), [(OLD, True), (NEW, False)])
def test_an_interrupt_ends_a_blocking_call_at_once(version: str, ending: bool) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)  # what Ctrl-C does, but no other test can get it
    try:
        with observing(version, hold_s=10) as server, transport_to(server, "sync") as transport:
            learn(transport)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                infer(transport, 30)
            assert time.monotonic() - started < 1
            if ending:
                server.release.set()
            server.wait_for(1, server.endings)
            assert server.endings == [ending]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_call_in_another_thread_gets_its_answer_though_the_transport_closes() -> None:
    with observing(OLD, hold_s=0.3) as server, transport_to(server, "sync") as transport:
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(infer(transport, 5)))
        thread.start()
        server.wait_for(1, server.requests)
        transport.close()
        thread.join(5)
        assert [answer["y"].tolist() for answer in answers] == [[[0, 1], [2, 3]]]
        with pytest.raises(ConnectionFailedError, match="closed") as caught:
            infer(transport, 5)
        assert not caught.value.is_retryable


@both
def test_closing_cancels_calls_on_other_servers(kind: str) -> None:
    with observing(NEW, hold_s=10) as server, transport_to(server, kind) as transport:
        learn(transport)
        errors: list[ConnectionFailedError] = []

        def call() -> None:
            try:
                infer(transport, 30)
            except ConnectionFailedError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        server.wait_for(1, server.requests)
        run(transport.close())
        thread.join(5)
        assert len(errors) == 1
        assert not errors[0].is_retryable
        server.wait_for(1, server.endings)
        assert server.endings == [False]


@pytest.mark.slow
@both
def test_closing_waits_two_seconds_at_most(kind: str) -> None:
    with observing(OLD, hold_s=20) as server, transport_to(server, kind) as transport:
        with pytest.raises(DeadlineExceededError):
            infer(transport, 0.1)
        started = time.monotonic()
        run(transport.close())
        assert 1.5 < time.monotonic() - started < 3


def test_triton_answers_calls_whose_transport_closes(triton: Server) -> None:
    images = tiny.images(4, seed=3)

    async def close_at_once() -> list[Any]:
        transport = AsyncGrpcTransport(triton.grpc_url)
        tasks = [asyncio.create_task(transport.infer("alpha", {"images": images}, [OutputRequest("logits")], 10)) for _ in range(20)]
        await asyncio.sleep(0)  # now each task has begun its call
        await transport.close()
        return await asyncio.gather(*tasks)

    for _ in range(5):
        for outputs in asyncio.run(close_at_once()):
            np.testing.assert_allclose(outputs["logits"], tiny.logits(1, images), rtol=1e-5)
            assert outputs.model_version == "1"


ABANDON = """
import asyncio, atexit, sys, threading
atexit.register(print, "after the wait", file=sys.stderr, flush=True)
import numpy as np
from defensemble import GrpcTransport, OutputRequest
from defensemble._transport.grpc_transport import AsyncGrpcTransport

call = ("m", {"images": np.zeros((2, 1, 4, 4), np.float32)}, [OutputRequest("y")], 30)
blocking, awaiting = GrpcTransport(sys.argv[1]), AsyncGrpcTransport(sys.argv[1])

async def main():
    asyncio.create_task(awaiting.infer(*call))
    while not await awaiting.live(5):
        pass

asyncio.run(main())  # cancels the task and closes the loop
thread = threading.Thread(target=blocking.infer, args=call, daemon=True)
thread.start()
while not blocking.live(5):
    pass
print("at the end", flush=True)
"""


def test_the_end_of_an_event_loop_and_of_the_interpreter_wait_for_calls() -> None:
    with observing(OLD, hold_s=10) as server:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "dev", "-c", ABANDON, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.wait_for(2, server.requests)
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "at the end\n"
        assert select.select([process.stderr], [], [], 0.3)[0] == [], "it waits"
        server.release.set()
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "after the wait\n")
        server.wait_for(2, server.endings)
        assert server.endings == [True, True]
