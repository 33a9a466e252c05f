"""The client against real servers of the KServe v2 protocol other than Triton, which lack parts of it."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from defensemble import Client, InputError, ModelNotFoundError, RequestRefusedError, ServerFailedError
from defensemble._client.async_client import AsyncClient
from defensemble._transport.base import BINARY_TENSORS, CLASSIFICATION, MODEL_CONFIGURATION, STATISTICS
from tests.support.kserve_servers import KINDS, MODELS, SHAPE, KserveServer, logits, running
from tests.support.tiny import images, softmax

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the pinned packages of the servers need Python 3.11"),
]
NAMES = ("0", "1", "2", "3", "4")
Open = Callable[..., Any]


class BlockingCalls:
    """An `AsyncClient` whose calls block, on an event loop of its own."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not inspect.ismethod(value):
            return value
        return lambda *arguments, **options: self._loop.run_until_complete(_finished(value(*arguments, **options)))


async def _finished(called: Any) -> Any:
    return [value async for value in called] if inspect.isasyncgen(called) else await called


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KserveServer]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    protocol: str = request.param
    return protocol


@pytest.fixture(params=["Client", "AsyncClient"])
def connect(request: pytest.FixtureRequest, server: KserveServer, protocol: str) -> Iterator[Open]:
    """Creates a client of either kind, whose calls block."""
    loop = asyncio.new_event_loop()
    opened = []

    def create(model: str | None = "linear", **options: Any) -> Any:
        if request.param == "Client":
            client: Any = Client(server.url(protocol), model, **options)
        else:
            client = BlockingCalls(AsyncClient(server.url(protocol), model, **options), loop)
        opened.append(client)
        return client

    try:
        yield create
    finally:
        for client in opened:
            client.close()
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture
def missing(server: KserveServer, protocol: str) -> set[str]:
    """What the server lacks."""
    reads_binary = protocol == "grpc" or server.kind == "kserve"
    return {CLASSIFICATION, MODEL_CONFIGURATION} | (set() if reads_binary else {BINARY_TENSORS})


def test_it_is_ready_and_has_a_name(server: KserveServer, connect: Open) -> None:
    client = connect()
    client.wait_ready(20)
    [health] = client.health()
    assert (health.is_live, health.is_ready, health.name, health.error) == (True, True, server.kind, None)
    assert health.version


def test_what_is_missing_is_described(connect: Open, missing: set[str]) -> None:
    client = connect()
    info = client.describe()
    assert (info.input_name, info.image_shape, info.outputs) == ("images", SHAPE, ("logits",))
    assert (info.max_batch_size, info.class_names, info.steps, info.preprocessing) == (None, NAMES, (), None)
    assert info.missing_features == missing
    assert client.describe("softmax").outputs == ("probabilities",)
    assert client.labels("softmax") == NAMES


@pytest.mark.parametrize(("model", "shape"), [("linear", SHAPE), ("softmax", SHAPE), ("flexible", (3, 16, 24))])
def test_predictions_equal_numpy(server: KserveServer, connect: Open, model: str, shape: tuple[int, int, int]) -> None:
    client = connect(model)
    batch = images(7, seed=3, shape=shape)
    prediction = client.predict(batch, outputs=("probabilities", "entropy"), request_id="request-7")
    expected = softmax(logits(batch))
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(prediction.entropy, -(expected * np.log(expected)).sum(axis=1), atol=1e-4)
    assert prediction.labels == [str(index) for index in expected.argmax(axis=1)]
    assert (prediction.model, prediction.model_version) == (model, server.version(model))
    assert (prediction.request_id, prediction.url) == ("request-7", client.url)


def test_many_images_are_sent_in_chunks(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect()
    client.describe()
    batch = images(150, seed=4, shape=SHAPE)
    with server.counting() as requests:
        prediction = client.predict(batch)
    np.testing.assert_allclose(prediction.probabilities, softmax(logits(batch)), atol=1e-5)
    assert requests == {inference(protocol): 3}


def test_images_come_one_after_another(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect("softmax")
    client.describe()
    batch = images(20, seed=5, shape=SHAPE)
    with server.counting() as requests:
        predictions = list(client.predict_iter(iter(batch), batch_size=8))
    np.testing.assert_allclose(np.concatenate([single.probabilities for single in predictions]), softmax(logits(batch)), atol=1e-5)
    assert requests == {inference(protocol, "softmax"): 3}


def test_what_a_server_refused_is_asked_once(server: KserveServer, connect: Open, protocol: str, missing: set[str]) -> None:
    client = connect()
    batch = images(2, shape=SHAPE)
    with server.counting() as requests:
        for model in ("linear", "softmax", "linear", "softmax"):
            client.predict(batch, model=model)
            assert client.describe(model).missing_features == missing
    metadata, config, black_and_two = 1, 1, 3
    if protocol == "grpc":
        assert requests == {
            "ServerMetadata": 1,  # whether the server is one that must not see a deadline
            "ModelMetadata": 2 * metadata,
            "ModelConfig": config,
            "ModelInfer": 2 * black_and_two,
        }
        return
    expected = {inference("http", model): black_and_two for model in ("linear", "softmax")}
    expected |= {f"GET /v2/models/{model} 200": metadata for model in ("linear", "softmax")}
    expected |= {"GET /v2/models/linear/config 404": config}
    if BINARY_TENSORS in missing:
        expected |= {"POST /v2/models/linear/infer 422": 1}
    assert requests == expected


def test_models_are_listed_where_the_server_can(server: KserveServer, connect: Open, protocol: str, missing: set[str]) -> None:
    client = connect()
    with server.counting() as requests:
        for _ in range(2):
            if (server.kind, protocol) == ("kserve", "grpc"):
                with pytest.raises(RequestRefusedError, match="cannot list"):
                    client.models()
            else:
                assert client.models() == sorted(MODELS)
    assert requests["ModelStatistics"] + requests["GET /v2/models/stats 404"] == 1
    assert client.describe().missing_features == missing | {STATISTICS}


def test_a_model_must_be_named(server: KserveServer, connect: Open, protocol: str) -> None:
    is_listed = (server.kind, protocol) != ("kserve", "grpc")
    with pytest.raises(ModelNotFoundError if is_listed else RequestRefusedError, match="model=") as caught:
        connect(None).predict(images(1, shape=SHAPE))
    assert (", ".join(sorted(MODELS)) in str(caught.value)) == is_listed


def test_there_are_no_statistics(connect: Open) -> None:
    client = connect()
    with pytest.raises(RequestRefusedError) as caught:
        client.statistics()
    assert client.url in str(caught.value)


def test_an_unknown_model_is_not_found(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect("nope")
    for call in (client.describe, lambda: client.predict(images(1, shape=SHAPE))):
        with pytest.raises(ModelNotFoundError, match="'nope'") as caught:
            call()
        assert (", ".join(sorted(MODELS)) in str(caught.value)) == ((server.kind, protocol) != ("kserve", "grpc"))


def test_a_model_without_metadata_is_no_classifier(connect: Open) -> None:
    with pytest.raises(InputError, match="'bare'"):
        connect("bare").predict(images(1, shape=SHAPE))


def test_a_model_that_fails_is_the_servers_failure(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect("broken")
    is_quoted = (server.kind, protocol) != ("kserve", "grpc")  # there it is an "Internal server error"
    with pytest.raises(ServerFailedError, match="a defect of the model" if is_quoted else "'broken'"):
        client.predict(images(1, shape=SHAPE))
    assert client.counters.retries == 0


def test_images_of_another_size_are_not_sent(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect()
    client.describe()
    with server.counting() as requests, pytest.raises(InputError, match=r"9"):
        client.predict(images(2, shape=(3, 9, 9)))
    assert requests[inference(protocol)] <= 1  # the black image, since the model could have been replaced by another


def test_the_server_refuses_what_its_metadata_allows(connect: Open) -> None:
    client = connect("flexible")
    for count in (1, 3):
        with pytest.raises(RequestRefusedError, match="12"):
            client.predict(images(count, shape=(3, 12, 12)))
    assert client.counters.retries == 0
    batch = images(2, shape=(3, 16, 16))
    np.testing.assert_allclose(client.predict(batch).probabilities, softmax(logits(batch)), atol=1e-5)


@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_requests_become_smaller_until_the_server_accepts_them(server: KserveServer, connect: Open) -> None:
    # 8 MB; MLServer accepts gRPC messages of 4 MiB.
    client = connect("flexible")
    client.describe()
    batch = images(40, seed=6, shape=(3, 128, 128))
    for _ in range(2):
        with server.counting() as requests:
            prediction = client.predict(batch)
        np.testing.assert_allclose(prediction.probabilities, softmax(logits(batch)), atol=1e-5)
    assert requests == {"ModelInfer": 2 if server.kind == "mlserver" else 1}
    assert client.counters.retries == 0


def test_compressed_requests(server: KserveServer, connect: Open, protocol: str) -> None:
    client = connect(compression="gzip")
    batch = images(5, seed=7, shape=SHAPE)
    if (server.kind, protocol) == ("kserve", "http"):
        with pytest.raises(RequestRefusedError, match="400"):
            client.predict(batch)
        return
    np.testing.assert_allclose(client.predict(batch).probabilities, softmax(logits(batch)), atol=1e-5)


def test_the_repository_index(server: KserveServer, protocol: str) -> None:
    with Client(server.url(protocol)) as client:
        if server.kind == "kserve":
            with pytest.raises(ModelNotFoundError if protocol == "http" else RequestRefusedError):
                client.transport.repository_index(5)
            return
        index = client.transport.repository_index(5)
    assert {(entry.name, entry.version, entry.state) for entry in index} == {(name, None, "READY") for name in MODELS}


def inference(protocol: str, model: str = "linear") -> str:
    """An accepted request as `KserveServer.counting` counts it."""
    return "ModelInfer" if protocol == "grpc" else f"POST /v2/models/{model}/infer 200"
