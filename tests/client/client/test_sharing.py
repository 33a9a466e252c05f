"""Look-ups that several threads need at the same time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from defensemble import Client, ConnectionFailedError, DeadlineExceededError, FakeTransport, ServiceError
from defensemble._sharing import Asking
from tests.support.fakes import house
from tests.support.tiny import images


class Gated(FakeTransport):
    """Answers nothing about `alpha`, and which models it serves, until `gate` is open or the time is up."""

    def __init__(self) -> None:
        super().__init__(house()._models)
        self.gate = threading.Event()
        self.asked: list[str] = []

    def model_metadata(self, model: str, timeout_s: float) -> Any:
        if model == "alpha":
            self._pass(model, timeout_s)
        return super().model_metadata(model, timeout_s)

    def models(self, timeout_s: float) -> list[str]:
        self._pass("models", timeout_s)
        return super().models(timeout_s)

    def _pass(self, asked: str, timeout_s: float) -> None:
        self.asked.append(asked)
        if not self.gate.wait(timeout_s):
            raise DeadlineExceededError("no answer in time")


@pytest.mark.parametrize(("model", "asked"), [("alpha", "alpha"), (None, "models")])
def test_threads_that_ask_a_silent_server_all_end_at_their_own_time_out(model: str | None, asked: str) -> None:
    transport = Gated()
    client = Client("fake", model, timeout_s=0.3, transport=transport)
    barrier = threading.Barrier(8)

    def call(_: int) -> float:
        barrier.wait(5)
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            client.predict(images(1))
        return time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(call, range(8)))
    assert max(took) < 4 * 0.3, "one time-out, not eight of them"
    assert 1 <= transport.asked.count(asked) < 8
    transport.gate.set()
    assert len(client.predict(images(1))) == 1, "a failure is not kept"


def test_a_model_that_does_not_answer_holds_up_no_other() -> None:
    transport = Gated()
    client = Client("fake", timeout_s=10, transport=transport)
    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(client.describe, "alpha")
        wait_for(lambda: "alpha" in transport.asked)
        began = time.monotonic()
        assert client.predict(images(2), model="beta").model == "beta"
        assert time.monotonic() - began < 5
        assert not stuck.done()
        transport.gate.set()
        assert stuck.result(5).name == "alpha"


def test_all_that_wait_get_the_answer_or_the_error_of_one_question() -> None:
    for outcome in ("answer", ConnectionFailedError("it is gone")):
        asking: Asking[object] = Asking()
        asked: list[int] = []
        gate = threading.Event()

        def question(asked: list[int] = asked, gate: threading.Event = gate, outcome: object = outcome) -> object:
            asked.append(1)
            assert gate.wait(5)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def ask(asking: Asking[object] = asking, question: Callable[[], object] = question) -> object:
            try:
                return asking.ask("it", question, 5)
            except ServiceError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(ask)
            wait_for(lambda asked=asked: asked)  # type: ignore[misc]
            others = [pool.submit(ask) for _ in range(3)]
            (running,) = asking._running.values()
            wait_for(lambda running=running: len(vars(running)["_waiters"]) == 3)  # type: ignore[misc]
            gate.set()
            assert [one.result(5) for one in (first, *others)] == [outcome] * 4
        assert len(asked) == 1


def test_who_waits_for_another_waits_no_longer_than_its_own_time_out() -> None:
    asking: Asking[str] = Asking()
    gate, began = threading.Event(), threading.Event()

    def question() -> str:
        began.set()
        gate.wait(10)
        return "late"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(asking.ask, "it", question, 10)
        assert began.wait(5)
        with pytest.raises(TimeoutError, match=r"0\.1 s"):
            asking.ask("it", question, 0.1)
        gate.set()
        assert first.result(5) == "late"


def test_who_waits_for_a_thread_that_is_interrupted_asks_for_itself() -> None:
    asking: Asking[str] = Asking()
    gate, began = threading.Event(), threading.Event()

    def interrupted() -> str:
        began.set()
        gate.wait(10)
        raise KeyboardInterrupt

    def stop() -> None:
        with pytest.raises(KeyboardInterrupt):
            asking.ask("it", interrupted, 10)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stop)
        assert began.wait(5)
        second = pool.submit(asking.ask, "it", lambda: "answer", 5)
        gate.set()
        assert second.result(5) == "answer"
        first.result(5)


def wait_for(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
