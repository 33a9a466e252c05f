"""Several servers behind one client: balancing, failover, ejection, and one server and version for all chunks."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from defensemble import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    FakeTransport,
    InputError,
    NotReadyError,
    Outputs,
    RetriesExhaustedError,
    RetryPolicy,
    ServerFailedError,
)
from tests.support.checkout import ROOT
from tests.support.facts import raises
from tests.support.fakes import ensemble_answer
from tests.support.flaky import FlakyTransport
from tests.support.tiny import images

AT_ONCE = RetryPolicy(initial_backoff_s=0)


def down() -> ConnectionFailedError:
    return ConnectionFailedError("connection refused")


def pair(**options: Any) -> tuple[Client, FlakyTransport, FlakyTransport]:
    first, second = FlakyTransport(url="fake://one"), FlakyTransport(url="fake://two")
    return Client(["fake"], transport=[first, second], retry=AT_ONCE, **options), first, second


def test_calls_alternate_between_idle_servers() -> None:
    client, _, _ = pair()
    urls = Counter(client.predict(images(1)).url for _ in range(10))
    assert urls == {"fake://one": 5, "fake://two": 5}
    assert client.urls == ("fake://one", "fake://two")
    assert client.url == "fake://one, fake://two"


def test_a_busy_server_gets_no_call_while_another_is_idle() -> None:
    gate = threading.Event()

    class Slow(FlakyTransport):
        def infer(self, *args: Any, **options: Any) -> Outputs:
            assert options["request_id"] == "look-up" or gate.wait(5)
            return super().infer(*args, **options)

    client = Client("fake", transport=[FlakyTransport(url="fake://fast"), Slow(url="fake://slow")], retry=AT_ONCE)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.predict, images(1)) for _ in range(2)]
        deadline = time.monotonic() + 5
        while sum(call.done() for call in calls) != 1 or client.health()[1].pending != 1:
            assert time.monotonic() < deadline
        assert {client.predict(images(1)).url for _ in range(10)} == {"fake://fast"}
        gate.set()
        assert {call.result(5).url for call in calls} == {"fake://fast", "fake://slow"}


def test_a_call_moves_to_another_server_and_the_dead_one_is_left_out_until_it_is_back() -> None:
    client, first, _ = pair()
    for _ in range(4):
        client.predict(images(1))
    first.down = down
    before = first.attempts
    assert {client.predict(images(1)).url for _ in range(20)} == {"fake://two"}
    assert first.attempts == before + 1, "later calls do not try it"
    assert client.counters.ejections == 1
    assert [(server.url, server.is_ejected) for server in client.health()] == [("fake://one", True), ("fake://two", False)]
    first.down = None
    deadline = time.monotonic() + 5
    while client.predict(images(1)).url != "fake://one":
        assert time.monotonic() < deadline


def test_calls_wait_for_a_server_if_all_are_down() -> None:
    client, first, second = pair()
    client.predict(images(1)), client.predict(images(1))
    first.down = second.down = down
    timer = threading.Timer(0.3, lambda: setattr(second, "down", None))
    timer.start()
    started = time.monotonic()
    assert client.predict(images(1), timeout_s=5).url == "fake://two"
    assert time.monotonic() - started >= 0.2
    timer.join()
    second.down = down
    for _ in range(2):
        with pytest.raises(DeadlineExceededError, match="connection refused") as caught:
            client.predict(images(1), timeout_s=0.2)
        assert isinstance(caught.value.__cause__, ConnectionFailedError)


def test_servers_that_were_never_reached_fail_soon() -> None:
    client, first, second = pair()
    first.down = second.down = down
    with raises(RetriesExhaustedError, "2 servers | connection refused") as caught:
        client.predict(images(1))
    assert {attempt.url for attempt in caught.value.attempts} == {"fake://one", "fake://two"}
    assert len(caught.value.attempts) == 2 + AT_ONCE.max_retries
    with pytest.raises(RetriesExhaustedError):
        client.predict(images(1))


def test_a_server_that_will_never_accept_this_client_is_skipped_and_the_last_one_is_an_error() -> None:
    def untrusted() -> ConnectionFailedError:
        error = ConnectionFailedError("the certificate is not trusted")
        error.is_retryable = False
        return error

    client, first, second = pair()
    first.down = untrusted
    assert {client.predict(images(1)).url for _ in range(4)} == {"fake://two"}
    client, first, second = pair()
    first.down = second.down = untrusted
    for _ in range(4):
        with pytest.raises(ConnectionFailedError, match="not trusted"):
            client.predict(images(1))


def test_a_call_that_servers_cannot_survive_is_not_sent_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._client.replicas._FIRST_EJECTION_S", 0.0)
    client, first, second = pair()
    for _ in range(4):
        client.predict(images(1))
    before = first.attempts + second.attempts
    for transport in (first, second):
        transport.failures = [down() for _ in range(100)]
    tries = 2 * (1 + AT_ONCE.max_retries)
    with raises(RetriesExhaustedError, f"2 servers | {tries} times"):
        client.predict(images(1))
    assert first.attempts + second.attempts == before + tries
    assert client.counters.retries == tries - 1


FORK = """
import os, signal, threading
from defensemble import Client, Outputs
from tests.support.flaky import FlakyTransport
from tests.support.tiny import images

class Slow(FlakyTransport):
    def infer(self, *args, **options):
        if threading.current_thread() in threads:
            is_sent.set()
            assert is_over.wait(20)
        return super().infer(*args, **options)

is_sent, is_over, threads = threading.Event(), threading.Event(), []
client = Client("fake", transport=[Slow(url="fake://one"), FlakyTransport(url="fake://two")])
client.predict(images(1)), client.predict(images(1))
threads += [threading.Thread(target=client.predict, args=(images(1),)) for _ in range(2)]
for thread in threads:
    thread.start()
assert is_sent.wait(20)
with client._calls.replicas._lock:  # as a thread that a fork interrupts
    child = os.fork()
if child == 0:
    signal.alarm(10)
    urls = {client.predict(images(1)).url for _ in range(4)}
    os._exit(0 if urls == {"fake://one", "fake://two"} and not any(server.pending for server in client.health()) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
is_over.set()
for thread in threads:
    thread.join()
"""


def test_a_forked_child_uses_all_servers_whatever_the_threads_of_its_parent_did() -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK]  # Python 3.12 warns of threads
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert output.stdout == "0\n"


class Tasks:
    """An asynchronous transport over a blocking one. While that is down, its probes hang."""

    missing_features = frozenset[str]()

    def __init__(self, url: str) -> None:
        self.blocking = FlakyTransport(url=url)
        self.url = url
        self.probes = 0

    async def infer(self, *args: Any, **options: Any) -> Outputs:
        return self.blocking.infer(*args, **options)

    async def ready(self, timeout_s: float) -> bool:
        self.probes += 1
        if self.blocking.down is not None:
            await asyncio.Event().wait()
        return True

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any) -> Any:
            return getattr(self.blocking, name)(*args)

        return call


@pytest.mark.parametrize("is_async", [False, True])
def test_all_servers_are_closed_at_the_same_time(is_async: bool) -> None:
    together = threading.Barrier(3)

    class Waiting(FlakyTransport):
        def close(self) -> None:
            together.wait(5)

    transports = [Waiting(url=f"fake://{number}") for number in range(3)]
    if is_async:
        asyncio.run(AsyncClient("fake", transport=transports).close())
    else:
        Client("fake", transport=transports).close()
    assert not together.broken


def test_a_cancelled_check_of_health_leaves_no_task() -> None:
    async def cancel() -> None:
        transports = [Tasks("fake://one"), Tasks("fake://two")]
        for transport in transports:
            transport.blocking.down = down
        others = asyncio.all_tasks()
        check = asyncio.ensure_future(AsyncClient("fake", transport=transports).health())
        while not all(transport.probes for transport in transports):
            await asyncio.sleep(0)
        check.cancel()
        await asyncio.wait([check])
        while asyncio.all_tasks() != others:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(cancel(), 5))


def test_a_probe_that_is_lost_with_its_event_loop_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._client.replicas._FIRST_EJECTION_S", 0.0)
    monkeypatch.setattr("defensemble._client.replicas._LOST_PROBE_S", 0.0)
    first, second = Tasks("fake://one"), Tasks("fake://two")
    client = AsyncClient("fake", transport=[first, second], retry=AT_ONCE)
    first.blocking.down = down
    loop = asyncio.new_event_loop()
    for _ in range(3):
        loop.run_until_complete(client.predict(images(1)))
        loop.run_until_complete(asyncio.sleep(0))
    assert first.probes > 0
    loop.close()
    first.blocking.down = None

    async def until_back() -> None:
        while (await client.predict(images(1))).url != "fake://one":
            await asyncio.sleep(0)
        await client.close()

    asyncio.run(asyncio.wait_for(until_back(), 5))


def test_an_overloaded_server_passes_its_call_on() -> None:
    client, first, _ = pair()
    client.predict(images(1)), client.predict(images(1))
    first.failures = [NotReadyError("queue is full")] * 3
    assert [client.predict(images(1)).url for _ in range(3)] == ["fake://two"] * 3
    assert client.counters.ejections == 1


def test_an_overloaded_server_is_not_left_out_if_there_is_no_other() -> None:
    client, first, second = pair()
    client.predict(images(1)), client.predict(images(1))
    second.down = down
    first.failures = [NotReadyError("queue is full")] * 2
    assert client.predict(images(1)).url == "fake://one"
    assert [server.is_ejected for server in client.health()] == [False, True]


def test_a_server_that_times_out_is_probed_and_left_out_while_it_hangs() -> None:
    client, first, _ = pair()
    client.predict(images(1)), client.predict(images(1))
    hung = DeadlineExceededError("timed out")
    first.down = lambda: hung
    for _ in range(2):
        try:
            client.predict(images(1))
        except DeadlineExceededError:
            break
    assert {client.predict(images(1)).url for _ in range(10)} == {"fake://two"}


class ByChunk(FlakyTransport):
    """Fails the third chunk of each call as if the server died."""

    def infer(self, *args: Any, **options: Any) -> Outputs:
        if options.get("request_id", "").endswith("/16"):
            self.down = down
        return super().infer(*args, **options)


def test_all_chunks_come_from_one_server_even_if_one_dies_meanwhile() -> None:
    dying, other = ByChunk(url="fake://dying"), FlakyTransport(url="fake://other")
    client = Client("fake", transport=[other, dying], retry=AT_ONCE)
    client.describe()
    batch = images(30)
    predictions = [client.predict(batch) for _ in range(3)]
    assert {prediction.url for prediction in predictions} == {"fake://other"}
    for prediction in predictions:
        np.testing.assert_array_equal(prediction.probabilities, ensemble_answer(batch)["probabilities"])
    assert dying.attempts > 1, "it was tried"


class Versions(FlakyTransport):
    """Replaces version 1 by version 2 in the middle of a call; both stay loaded."""

    def infer(self, model: str, inputs: Any, outputs: Any, timeout_s: float, version: int | None = None, **options: Any) -> Outputs:
        response = FakeTransport.infer(self, model, inputs, outputs, timeout_s, **options)
        self.attempts += 1
        response.model_version = str(version or (1 if self.attempts < 3 else 2))
        return response


def test_all_chunks_come_from_one_version() -> None:
    transport = Versions()
    client = Client("fake", transport=transport)
    prediction = client.predict(images(32))
    assert prediction.model_version == "2"
    assert transport.attempts == 1 + 4 + 4
    assert client.predict(images(32)).model_version == "2"


class Edited(FlakyTransport):
    """Adds a member in the middle of a call; the version stays."""

    def infer(self, *args: Any, **options: Any) -> Outputs:
        outputs = super().infer(*args, **options)
        if self.attempts >= 3 and "member_probabilities" in outputs:
            outputs["member_probabilities"] = np.repeat(outputs["member_probabilities"], 2, axis=1)
        return outputs


def test_all_chunks_come_from_one_state_of_an_edited_ensemble() -> None:
    transport = Edited()
    prediction = Client("fake", transport=transport, max_parallel=1).predict(images(32), outputs=("member_probabilities",))
    assert prediction.member_probabilities.shape[:2] == (32, 4)
    assert transport.attempts == 1 + 4 + 4


class Restless(FlakyTransport):
    """Each response comes from another version, and versions are no numbers."""

    def infer(self, *args: Any, **options: Any) -> Outputs:
        outputs = super().infer(*args, **options)
        outputs.model_version = f"v{self.attempts}"
        return outputs


def test_a_model_that_changes_in_each_call_is_an_error() -> None:
    transport = Restless()
    with raises(ServerFailedError, "v6 | v7 | 3 times"):
        Client("fake", transport=transport, max_parallel=1).predict(images(16))
    assert transport.attempts == 1 + 3 * 2


def test_a_handler_of_the_log_may_use_the_client() -> None:
    client, first, _ = pair()
    first.down = down
    seen: list[int] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(client.counters.ejections)  # type: ignore[method-assign]
    logger = logging.getLogger("defensemble")
    logger.addHandler(handler)
    try:
        caller = threading.Thread(target=lambda: [client.predict(images(1)) for _ in range(2)], daemon=True)
        caller.start()
        caller.join(5)
        assert not caller.is_alive()
    finally:
        logger.removeHandler(handler)
    assert 1 in seen


def test_every_replica_answers_to_the_same_client_options() -> None:
    with raises(InputError, "empty"):
        Client([])
    with raises(InputError, "empty"):
        Client("fake", transport=[])
    with raises(InputError, "url | list"):
        Client([["http://localhost"]])  # type: ignore[list-item]
    assert Client(["http://localhost", "http://localhost:8000/"]).urls == ("http://localhost:8000",)
    with raises(InputError, "transport | compression"):
        Client("fake", transport=FlakyTransport(), compression="gzip")
    with raises(InputError, "max_parallel | 0"):
        Client("fake", transport=FlakyTransport(), max_parallel=0)
