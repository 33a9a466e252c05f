"""Two real servers behind one client: one dies under load, both die and one comes back, one is slow.

The servers have different networks under the same name, so that each answer shows which of them gave it, and whether all of it is theirs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from defensemble import AsyncClient, Client, DeadlineExceededError, Prediction, ServiceError
from defensemble_server import ServeOptions, serve
from tests.support import tiny
from tests.support.clients import KINDS, client_of, url_of
from tests.support.scripted import free_port
from tests.support.tcp_proxy import TcpProxy, answer, connected_sockets, proxied, slow, stall, until

if TYPE_CHECKING:
    from defensemble_server import Server

pytestmark = pytest.mark.slow
IMAGES = tiny.images(20)  # three chunks of at most 8
SEEDS = (1, 3)
EXPECTED = [tiny.softmax(tiny.logits(seed, IMAGES)) for seed in SEEDS]
KEY = "the-key-of-the-tests-0123456789"


def write(folder: Path, seed: int) -> Path:
    return tiny.write_repository(folder, {"alpha": seed}, ensemble=None)


def started(folder: Path, http_port: int = 0, grpc_port: int = 0) -> AbstractContextManager[Server]:
    options = ServeOptions(http_port=http_port, grpc_port=grpc_port, metrics_port=0, drain_s=1, restart=False, admin_key=KEY)
    return serve(folder, options)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers that live as long as this module's tests."""
    folders = [write(tmp_path_factory.mktemp("served") / "repository", seed) for seed in SEEDS]
    with started(folders[0]) as first, started(folders[1]) as second:
        yield first, second
    assert [left for folder in folders for left in tiny.leftovers(folder)] == []


def source_of(prediction: Prediction) -> int:
    """Which server's network gave all of an answer, which must be the one that it names."""
    matches = [number for number, expected in enumerate(EXPECTED) if np.abs(prediction.probabilities - expected).max() < 1e-6]
    assert len(matches) == 1, "an answer of neither network, or of both"
    return matches[0]


class Load:
    """Callers that share a client and classify the same images again and again: 8 threads, or 64 tasks."""

    def __init__(self, kind: str, urls: list[str], tasks: int = 64) -> None:
        self.sources: list[int] = []
        self.errors: list[BaseException] = []
        self.urls = urls
        self._tasks = tasks
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run_tasks)]
        if not kind.startswith("async"):
            self.client: Client | AsyncClient = Client(urls, "alpha", timeout_s=20)
            self._threads = [threading.Thread(target=self._run_thread) for _ in range(8)]

    def _record(self, prediction: Prediction) -> None:
        source = source_of(prediction)
        assert prediction.url == self.urls[source]
        self.sources.append(source)

    def _run_thread(self) -> None:
        assert isinstance(self.client, Client)
        while not self._over.is_set():
            try:
                self._record(self.client.predict(IMAGES))
            except BaseException as error:
                self.errors.append(error)

    def _run_tasks(self) -> None:
        async def call(client: AsyncClient) -> None:
            while not self._over.is_set():
                try:
                    self._record(await client.predict(IMAGES))
                except BaseException as error:
                    self.errors.append(error)

        async def call_all() -> None:
            async with AsyncClient(self.urls, "alpha", timeout_s=20) as client:
                self.client = client
                await asyncio.gather(*(call(client) for _ in range(self._tasks)))

        asyncio.run(call_all())

    def wait(self, count: int, source: int | None = None) -> None:
        """Wait for `count` more answers (of one server), or an error."""
        start = len(self.sources)

        def is_enough() -> bool:
            found = self.sources[start:]
            return bool(self.errors) or len(found if source is None else [one for one in found if one == source]) >= count

        until(is_enough, 30)
        assert self.errors == []

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(30)
            if isinstance(self.client, Client):
                self.client.close()
        assert not any(thread.is_alive() for thread in self._threads)
        assert self.errors == []


def kill(server: Server) -> None:
    os.kill(server.triton_pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_fails_while_one_of_two_servers_is_killed_and_comes_back(kind: str, tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in SEEDS]
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    with ExitStack() as stack, started(folders[0], **ports) as doomed, started(folders[1]) as other:
        load = Load(kind, [url_of(kind, doomed), url_of(kind, other)])
        with load.running():
            for source in (0, 1):
                load.wait(40, source)
            kill(doomed)
            load.wait(200, 1)
            assert load.client.counters.ejections >= 1
            assert load.client.counters.failures > 0, "the kill hit calls under way"
            stack.enter_context(started(folders[0], **ports))
            for source in (0, 1):
                load.wait(40, source)
    assert [left for folder in folders for left in tiny.leftovers(folder)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_call_fails_while_one_of_two_servers_is_stopped(kind: str, tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in SEEDS]
    with started(folders[0]) as stopped, started(folders[1]) as other:
        load = Load(kind, [url_of(kind, stopped), url_of(kind, other)])
        with load.running():
            for source in (0, 1):
                load.wait(40, source)
            stopped.stop()  # Triton drains: it refuses new calls for a time
            load.wait(100, 1)
    assert [left for folder in folders for left in tiny.leftovers(folder)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_calls_succeed_within_their_deadline_when_one_of_two_killed_servers_comes_back(kind: str, tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in SEEDS]
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    with ExitStack() as stack, started(folders[0], **ports) as first, started(folders[1]) as second:
        load = Load(kind, [url_of(kind, first), url_of(kind, second)])
        with load.running():
            for source in (0, 1):
                load.wait(20, source)
            kill(first)
            kill(second)
            until(lambda: load.client.counters.ejections >= 2)
            with client_of(kind, load.urls, "alpha", timeout_s=0.5) as impatient:
                began = time.monotonic()
                with pytest.raises(ServiceError):
                    impatient.predict(IMAGES)
                assert time.monotonic() - began < 1.5
            stack.enter_context(started(folders[0], **ports))
            load.wait(80, 0)
    assert [left for folder in folders for left in tiny.leftovers(folder)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_equal_servers_share_the_load_and_a_slow_one_gets_less(kind: str, servers: tuple[Server, Server]) -> None:
    with proxied(url_of(kind, servers[0])) as first, proxied(url_of(kind, servers[1])) as second:
        load = Load(kind, [url_of(kind, servers[0], first.port), url_of(kind, servers[1], second.port)], tasks=8)
        with load.running():
            load.wait(100)
            shares = Counter(load.sources)
            assert min(shares.values()) > 0.2 * sum(shares.values()), shares
            first.always = slow(0.2)
            load.wait(20)  # each connection is slow from its next request on
            load.sources.clear()
            load.wait(16, 0)  # it still gets some
            shares = Counter(load.sources)
            assert shares[0] < 0.35 * sum(shares.values()), shares
        for proxy in (first, second):
            proxy.assert_no_socket_left()


@contextmanager
def pair(kind: str, servers: tuple[Server, Server], timeout_s: float = 10) -> Iterator[tuple[Client, TcpProxy, list[str]]]:
    """Yield a client of both servers that knows both, the proxy in front of the first, and the URLs."""
    with proxied(url_of(kind, servers[0])) as proxy:
        urls = [url_of(kind, servers[0], proxy.port), url_of(kind, servers[1])]
        with client_of(kind, urls, "alpha", timeout_s=timeout_s) as client:
            assert {client.predict(IMAGES).url for _ in range(4)} == set(urls)
            yield client, proxy, urls
        proxy.assert_no_socket_left()
        until(lambda: connected_sockets(int(urls[1].rpartition(":")[2])) == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_cannot_be_reached_is_left_out_and_probed_back(kind: str, servers: tuple[Server, Server]) -> None:
    with pair(kind, servers) as (client, proxy, urls):
        with proxy.refusing():
            predictions = [client.predict(IMAGES) for _ in range(6)]
            assert [prediction.url for prediction in predictions] == [urls[1]] * 6
            assert [source_of(prediction) for prediction in predictions] == [1] * 6
            assert client.counters.ejections == 1
            assert [server.is_ejected for server in client.health()] == [True, False]
        until(lambda: client.predict(IMAGES).url == urls[0])
        assert source_of(client.predict(IMAGES)) in (0, 1)
        assert [server.is_ejected for server in client.health()] == [False, False]


@pytest.mark.parametrize("kind", ["http", "async http"])
def test_an_overloaded_server_passes_its_calls_on(kind: str, servers: tuple[Server, Server]) -> None:
    with pair(kind, servers) as (client, proxy, urls):
        proxy.always = answer("503 Busy")
        single = tiny.images(2)
        predictions = [client.predict(single) for _ in range(4)]
        assert [prediction.url for prediction in predictions] == [urls[1]] * 4
        assert client.counters.retries == len(proxy.taken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_falls_silent_costs_a_call_its_deadline_once(kind: str, servers: tuple[Server, Server]) -> None:
    with pair(kind, servers) as (client, proxy, urls):
        proxy.always = stall()
        outcomes = []
        for _ in range(12):
            began = time.monotonic()
            try:
                outcomes.append(client.predict(IMAGES, timeout_s=0.3).url)
            except DeadlineExceededError:
                outcomes.append("late")
            assert time.monotonic() - began < 0.8
        assert outcomes.count("late") <= 2
        assert outcomes[-8:] == [urls[1]] * 8
        proxy.always = None
        with proxy.refusing():
            pass  # the silent connections end
        until(lambda: client.predict(IMAGES).url == urls[0])


@pytest.mark.parametrize("kind", KINDS)
def test_all_chunks_are_answered_by_one_version_while_a_new_one_is_loaded(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "repository", 1)
    by_version = {"1": EXPECTED[0], "2": tiny.softmax(tiny.logits(7, IMAGES))}
    with started(folder) as server, client_of(kind, url_of(kind, server), "alpha") as client:
        predictions: list[Prediction] = []
        over = threading.Event()

        def load_new_version() -> None:
            with Client(server.grpc_url, admin_key=KEY) as admin:
                until(lambda: len(predictions) > 20)
                tiny.write_second_version(folder, "alpha", 7)
                admin.transport.load_model("alpha", 20)
            until(lambda: predictions[-1].model_version == "2")
            over.set()

        loader = threading.Thread(target=load_new_version)
        loader.start()
        while not over.is_set() and loader.is_alive():
            predictions.append(client.predict(IMAGES))
        loader.join()
        versions = [prediction.model_version for prediction in predictions]
        assert versions == sorted(versions)
        assert set(versions) == {"1", "2"}
        for prediction in predictions:
            np.testing.assert_allclose(prediction.probabilities, by_version[prediction.model_version], atol=1e-6)
    assert tiny.leftovers(folder) == []
