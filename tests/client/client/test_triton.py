"""The client against a real Triton, over both protocols."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from defensemble import (
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    GrpcTransport,
    HttpTransport,
    InputError,
    ModelNotFoundError,
    OutputRequest,
    RequestRefusedError,
    RetriesExhaustedError,
    RetryPolicy,
    ServerFailedError,
    ServiceError,
    Transport,
)
from tests.support.facts import raises
from tests.support.scripted import free_port
from tests.support.tiny import CLASSES, SHAPE, images, leftovers, logits, softmax, write_repository

if TYPE_CHECKING:
    from defensemble_server import Server

ALL = ("probabilities", "member_probabilities", "entropy", "mutual_information")


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, triton: Server) -> Iterator[Client]:
    with Client(triton.grpc_url if request.param == "grpc" else triton.http_url, timeout_s=20) as client:
        yield client


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest, triton: Server) -> Iterator[Transport]:
    transport: Transport = GrpcTransport(triton.grpc_url) if request.param == "grpc" else HttpTransport(triton.http_url)
    yield transport
    transport.close()


def test_an_ensemble_equals_the_numpy_average_of_its_members(client: Client) -> None:
    batch = images(8)
    prediction = client.predict(batch, outputs=ALL)
    members = np.stack([softmax(logits(seed, batch)) for seed in (1, 2)], axis=1)
    mean = members[:, 0] * 0.25 + members[:, 1] * 0.75
    nats = -(mean * np.log(mean)).sum(axis=1)
    within = -(members * np.log(members)).sum(axis=2) @ np.array([0.25, 0.75])
    np.testing.assert_allclose(prediction.member_probabilities, members, atol=1e-6)
    np.testing.assert_allclose(prediction.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(prediction.entropy, nats, atol=2e-6)
    np.testing.assert_allclose(prediction.mutual_information, nats - within, atol=4e-6)
    assert prediction.labels == [CLASSES[index] for index in mean.argmax(axis=1)]
    np.testing.assert_allclose(client.predict(batch).entropy, nats, atol=2e-6)


def test_a_member_can_be_called(client: Client) -> None:
    batch = images(3)
    np.testing.assert_allclose(client.predict(batch, model="beta").probabilities, softmax(logits(2, batch)), atol=1e-6)


def test_describe_returns_what_is_served(client: Client) -> None:
    info = client.describe()
    assert (info.name, info.is_ensemble, info.image_shape, info.max_batch_size) == ("ensemble", True, SHAPE, 8)
    assert info.class_names == CLASSES
    assert info.steps[:2] == ("alpha", "beta")
    assert set(ALL) == set(info.outputs)
    assert [info.name for info in client.classifiers()] == ["ensemble", "alpha", "beta"]
    assert {"alpha", "beta", "ensemble"} < set(client.models())
    assert client.server_metadata().name == "triton"
    client.wait_ready(5)


def test_both_protocols_return_the_same(triton: Server) -> None:
    batch = images(7)
    with Client(triton.grpc_url) as grpc, Client(triton.http_url) as http:
        assert grpc.describe() == http.describe()
        predictions = grpc.predict(batch, outputs=ALL), http.predict(batch, outputs=ALL)
        for name in ALL:
            np.testing.assert_array_equal(*(getattr(prediction, name) for prediction in predictions))


def test_threads_get_their_own_responses(client: Client) -> None:
    wrong: list[Any] = []

    def call(seed: int) -> None:
        for turn in range(15):
            batch = images(1 + turn % 8, 100 * seed + turn)
            expected = softmax(logits(1, batch))
            got = client.predict(batch, model="alpha").probabilities
            if got.shape != expected.shape or np.abs(got - expected).max() > 1e-6:
                wrong.append((seed, turn))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_errors_quote_why_the_server_rejects_a_request(transport: Transport) -> None:
    def infer(model: str = "ensemble", batch: Any = None, output: str = "probabilities", name: str = "images") -> Any:
        return transport.infer(model, {name: images(1) if batch is None else batch}, [OutputRequest(output)], 20)

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: infer(batch=images(9)), "batch-size must be <= 8"),
        (lambda: infer(batch=np.zeros((1, 1, 5, 5), np.float32)), "unexpected shape"),
        (lambda: infer(output="nothing"), "unexpected inference output 'nothing'"),
        (lambda: infer(name="pictures"), "pictures"),
    ]
    for call, fact in cases:
        with pytest.raises(RequestRefusedError, match=fact):
            call()
    with pytest.raises(ModelNotFoundError, match="unknown model: 'nope'"):
        infer("nope")
    for call_of in (transport.model_metadata, transport.model_config):
        with pytest.raises(ModelNotFoundError, match="unknown model: 'nope'"):
            call_of("nope", 20)
    assert infer()["probabilities"].shape == (1, 3)
    assert transport.live(20)
    assert transport.ready(20)


def test_a_wrong_port_is_reported(triton: Server) -> None:
    http, grpc = triton.http_url.rpartition(":")[2], triton.grpc_url.rpartition(":")[2]
    once = RetryPolicy(max_retries=1, initial_backoff_s=0.01)
    with Client(f"http://127.0.0.1:{grpc}", timeout_s=5, retry=once) as client, pytest.raises(ServiceError) as caught:
        client.models()
    assert isinstance(caught.value, (ServerFailedError, RetriesExhaustedError))
    with (
        Client(f"grpc://127.0.0.1:{http}", timeout_s=5, retry=once) as client,
        raises(RetriesExhaustedError, "8001 | 8000"),
    ):
        client.models()


def start_server(folder: Path, http_port: int = 0, grpc_port: int = 0) -> AbstractContextManager[Server]:
    from defensemble_server import ServeOptions, serve

    return serve(folder, ServeOptions(http_port=http_port, grpc_port=grpc_port, metrics_port=0, drain_s=1, restart=False))


def test_several_ensembles_are_listed(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "repository")
    write_repository(folder, {"gamma": 3}, ensemble="another")
    with start_server(folder) as server:
        for url in (server.grpc_url, server.http_url):
            with Client(url) as client:
                with raises(InputError, "2 ensembles | another, ensemble"):
                    client.predict(images(1))
                prediction = client.predict(images(1), ("probabilities", "member_probabilities"), "another")
                np.testing.assert_array_equal(prediction.member_probabilities[:, 0], prediction.probabilities)
    assert leftovers(folder) == []


def test_clients_survive_a_server_that_dies_and_is_replaced(tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "repository")
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    seen: dict[str, list[Exception]] = {"grpc": [], "http": []}
    responses = dict.fromkeys(seen, 0)
    with start_server(folder, **ports) as server:
        once = RetryPolicy(max_retries=1, initial_backoff_s=0.01)  # the default would outlast a short absence
        clients = {kind: Client(url, timeout_s=10, retry=once) for kind, url in (("grpc", server.grpc_url), ("http", server.http_url))}
        ready = threading.Barrier(3)

        def call(kind: str) -> None:
            clients[kind].wait_ready(20)
            ready.wait(20)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    clients[kind].predict(images(8))
                    responses[kind] += 1
                except ServiceError as error:
                    seen[kind].append(error)
                    return

        threads = [threading.Thread(target=call, args=(kind,)) for kind in seen]
        for thread in threads:
            thread.start()
        ready.wait(20)
        while min(responses.values()) < 5:
            time.sleep(0.005)
        os.kill(server.triton_pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    for kind, errors in seen.items():
        assert [(type(error), type(error.__cause__)) for error in errors] == [(RetriesExhaustedError, ConnectionFailedError)], (
            kind,
            errors,
        )
        with pytest.raises(DeadlineExceededError, match=r"0\.1 s"):
            clients[kind].wait_ready(0.1)
    with start_server(folder, **ports):
        for client in clients.values():
            client.wait_ready(20)
            assert client.predict(images(2)).probabilities.shape == (2, 3)
            client.close()
    assert leftovers(folder) == []
