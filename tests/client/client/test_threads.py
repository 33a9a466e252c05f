"""Concurrent look-ups of models by threads that share a client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from defensemble import Client, DeadlineExceededError, FakeTransport
from tests.support.fakes import house
from tests.support.tiny import images


class Gated(FakeTransport):
    """Blocks calls about `alpha` and the list of models until `gate` is open or the call times out."""

    def __init__(self) -> None:
        super().__init__(house()._models)
        self.gate = threading.Event()
        self.calls_at_gate: list[str] = []

    def model_metadata(self, model: str, timeout_s: float) -> Any:
        if model == "alpha":
            self._wait_at_gate(model, timeout_s)
        return super().model_metadata(model, timeout_s)

    def models(self, timeout_s: float) -> list[str]:
        self._wait_at_gate("models", timeout_s)
        return super().models(timeout_s)

    def _wait_at_gate(self, call_name: str, timeout_s: float) -> None:
        self.calls_at_gate.append(call_name)
        if not self.gate.wait(timeout_s):
            raise DeadlineExceededError("timed out")


@pytest.mark.parametrize(("model", "call_name"), [("alpha", "alpha"), (None, "models")])
def test_threads_that_call_a_silent_server_end_at_their_own_timeout(model: str | None, call_name: str) -> None:
    transport = Gated()
    client = Client("fake", model, timeout_s=0.3, transport=transport)
    barrier = threading.Barrier(8)

    def call(_: int) -> float:
        barrier.wait(5)
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.predict(images(1))
        return time.monotonic() - started

    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(call, range(8)))
    assert max(took) < 4 * 0.3, "one timeout, not eight"
    assert transport.calls_at_gate.count(call_name) == 8
    transport.gate.set()
    assert len(client.predict(images(1))) == 1, "a failure is not kept"


def test_a_silent_model_does_not_block_another() -> None:
    transport = Gated()
    client = Client("fake", timeout_s=10, transport=transport)
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(client.describe, "alpha")
        wait_for(lambda: "alpha" in transport.calls_at_gate)
        started = time.monotonic()
        assert client.predict(images(2), model="beta").model == "beta"
        assert time.monotonic() - started < 5
        assert not stuck.done()
        transport.gate.set()
        assert stuck.result(5).name == "alpha"


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
