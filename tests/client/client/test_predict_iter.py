"""`predict_iter` is lazy and bounded, and chunks keep their order."""

from __future__ import annotations

import asyncio
import itertools
import resource
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from defensemble import (
    AsyncClient,
    Client,
    FakeModel,
    FakeTransport,
    InputError,
    ModelMetadata,
    Outputs,
    RequestRefusedError,
    TensorMetadata,
)
from defensemble_server import Server
from tests.support.facts import raises
from tests.support.fakes import ensemble_answer, house
from tests.support.tiny import CLASSES, SHAPE, images

BATCH = images(64)
EXPECTED = ensemble_answer(BATCH)["probabilities"]


class Late(FakeTransport):
    """Answers chunks in random order."""

    def infer(self, *args: Any, **options: Any) -> Outputs:
        time.sleep(float(np.random.default_rng().uniform(0, 0.003)))
        return super().infer(*args, **options)


@settings(max_examples=20)
@given(st.integers(1, 64), st.integers(1, 9), st.integers(1, 8))
def test_chunks_are_joined_in_order(count: int, parallel: int, largest: int) -> None:
    transport = Late({"ensemble": FakeModel(ensemble_answer, SHAPE, class_names=CLASSES, max_batch_size=largest, platform="ensemble")})
    prediction = Client("fake", transport=transport, max_parallel=parallel).predict(BATCH[:count])
    np.testing.assert_array_equal(prediction.probabilities, EXPECTED[:count])
    assert transport.calls["ensemble"] == 1 + -(-count // largest)


@settings(max_examples=20)
@given(st.integers(0, 64), st.integers(1, 8), st.integers(1, 5))
def test_predictions_come_in_order_and_at_most_the_bound_is_pulled_ahead(count: int, batch_size: int, parallel: int) -> None:
    pulled = 0

    def pull() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal pulled
        for image in BATCH[:count]:
            pulled += 1
            yield image

    client = Client("fake", transport=Late(house()._models), max_parallel=parallel)
    done = 0
    for prediction in client.predict_iter(pull(), batch_size=batch_size):
        np.testing.assert_array_equal(prediction.probabilities[0], EXPECTED[done])
        done += 1
        assert len(prediction) == 1
        assert pulled - done <= parallel * batch_size
    assert done == pulled == count


def test_nothing_is_pulled_before_the_first_prediction_is_asked_for() -> None:
    pulled: list[int] = []
    predictions = Client("fake", transport=house()).predict_iter(pulled.append(n) or BATCH[n % 64] for n in itertools.count())  # type: ignore[func-returns-value]
    assert pulled == []
    next(predictions)
    assert len(pulled) == 4 * 8
    predictions.close()  # type: ignore[attr-defined]
    assert len(pulled) == 4 * 8


def test_an_invalid_image_is_named_by_its_position_after_the_predictions_before_it() -> None:
    items: list[Any] = [*BATCH[:9], BATCH[0] + 1, *BATCH[:3]]
    done = 0
    with raises(InputError, "images[9]"):
        for _ in Client("fake", transport=house()).predict_iter(items, batch_size=3):
            done += 1
    assert done == 9


def test_what_is_no_iterable_of_images_is_rejected() -> None:
    for wrong in (5, "photo.png", b"png"):
        with raises(InputError, f"iterable | {type(wrong).__name__}"):
            list(Client("fake", transport=house()).predict_iter(wrong))  # type: ignore[arg-type]
    with raises(InputError, "batch_size | 0"):
        list(Client("fake", transport=house()).predict_iter([], batch_size=0))


class AnySize(FakeTransport):
    """Takes images of any size."""

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        found = super().model_metadata(model, timeout_s)
        return replace(found, inputs=(TensorMetadata("images", "FP32", (-1, SHAPE[0], -1, -1)),))

    def infer(self, model: str, inputs: Any, *args: Any, **options: Any) -> Outputs:
        return super().infer(model, {"images": np.zeros((len(inputs["images"]), *SHAPE), np.float32)}, *args, **options)


def test_invalid_arguments_are_rejected_before_the_iteration() -> None:
    for client in (Client("fake", transport=house()), AsyncClient("fake", transport=house())):
        with raises(InputError, "outputs"):
            client.predict_iter([], outputs="probabilities")


def test_the_timeout_of_an_iteration_is_also_that_of_its_look_up() -> None:
    timeouts = []

    class Timed(FakeTransport):
        def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
            timeouts.append(timeout_s)
            return super().model_metadata(model, timeout_s)

    list(Client("fake", "alpha", transport=Timed(house()._models)).predict_iter(BATCH[:2], timeout_s=3))
    assert 2 < timeouts[0] <= 3


def test_images_of_several_sizes_need_a_batch_each() -> None:
    client = Client("fake", transport=AnySize(house()._models))
    items = [np.zeros((SHAPE[0], 5 + number, 6), np.float32) for number in range(3)]
    assert len(list(client.predict_iter(items, batch_size=1))) == 3
    with raises(InputError, "images[0] | images[2] | batch_size=1"):
        list(client.predict_iter(items))


def test_a_failure_ends_the_iteration_and_its_threads() -> None:
    def answer(batch: np.ndarray[Any, Any]) -> Any:
        if batch.max() >= 1:
            raise RequestRefusedError("no")
        return ensemble_answer(batch)

    model = FakeModel(answer, SHAPE, class_names=CLASSES, max_batch_size=8, platform="ensemble")
    client = Client("fake", transport=FakeTransport({"ensemble": model}))
    with pytest.raises(RequestRefusedError):
        list(client.predict_iter([*BATCH[:20], np.ones(SHAPE, np.float32), *BATCH]))
    deadline = time.monotonic() + 5
    while any(thread.name == "defensemble" for thread in threading.enumerate()):
        assert time.monotonic() < deadline


def test_asynchronous_iterators_and_their_backpressure() -> None:
    pulled = 0

    async def pull() -> AsyncIterator[np.ndarray[Any, Any]]:
        nonlocal pulled
        for image in BATCH:
            pulled += 1
            await asyncio.sleep(0)
            yield image

    async def main() -> int:
        done = 0
        async with AsyncClient("fake", transport=house(), max_parallel=2) as client:
            async for prediction in client.predict_iter(pull(), batch_size=5):
                np.testing.assert_array_equal(prediction.probabilities[0], EXPECTED[done])
                done += 1
                assert pulled - done <= 2 * 5
            async for _ in client.predict_iter(BATCH, batch_size=5):
                break
        return done

    assert asyncio.run(main()) == 64


class Memory:
    """Counts images, and asserts that few are pulled ahead and that memory does not grow by 50 MB."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pulled = self.done = 0
        self._before = self._bytes()

    def pull(self) -> Iterator[np.ndarray[Any, Any]]:
        for index in range(self.total):
            self.pulled += 1
            yield BATCH[index % 64].copy()

    def look(self) -> None:
        self.done += 1
        assert self.pulled - self.done <= 4 * 64
        if self.done % 1000 == 0:
            assert self._bytes() - self._before < 50 << 20

    def _bytes(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize("is_async", [False, True])
def test_the_memory_of_a_million_images_is_bounded(is_async: bool) -> None:
    constant = ensemble_answer(BATCH)
    model = FakeModel(
        lambda batch: {name: value[: len(batch)] for name, value in constant.items()},
        SHAPE,
        class_names=CLASSES,
        max_batch_size=64,
        platform="ensemble",
    )
    transport = FakeTransport({"ensemble": model})
    memory = Memory(1_000_000)

    async def consume() -> None:
        async with AsyncClient("fake", transport=transport) as client:
            async for _ in client.predict_iter(memory.pull()):
                memory.look()

    if is_async:
        asyncio.run(consume())
    else:
        for _ in Client("fake", transport=transport).predict_iter(memory.pull()):
            memory.look()
    assert memory.done == memory.pulled == memory.total
    assert transport.images["ensemble"] == memory.total + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_the_memory_of_many_images_through_triton_is_bounded(kind: str, triton: Server) -> None:
    with Client(triton.grpc_url if kind == "grpc" else triton.http_url) as client:
        expected = client.predict(BATCH).probabilities
        memory = Memory(20_000)
        for prediction in client.predict_iter(memory.pull()):
            np.testing.assert_allclose(prediction.probabilities[0], expected[memory.done % 64], atol=1e-5)
            memory.look()
        assert client.counters.images == memory.total + 64
    assert memory.done == memory.total
