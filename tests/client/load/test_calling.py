"""The calls of one process: what is sent when, and what counts as late."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from defensemble import Client, ConnectionOptions, FakeModel, FakeTransport, NotReadyError
from defensemble._client.model_info import requests_from_outputs
from defensemble.load.calling import LATE_S, UNSENT, Caller, CallRecord, ClosedPhase, OpenPhase, PhaseRun, TargetSpec
from defensemble.load.recording import Recording
from defensemble.load.schedule import arrival_times
from tests.support.fakes import Array

SHAPE = (1, 2, 2)
DEADLINE_S = 20.0


def logits(images: Array) -> dict[str, Array]:
    return {"logits": images.mean(axis=(2, 3)).repeat(3, axis=1)}


class Fake:
    """A fake server with one model. The answers begin after that of the look-up."""

    def __init__(self, answer: Callable[[Array], dict[str, Array]] = logits) -> None:
        self.sizes: list[int] = []
        self.begin = 0.0
        self._is_ready = False

        def recorded(images: Array) -> dict[str, Array]:
            if not self._is_ready:
                return logits(images)
            self.sizes.append(len(images))
            return answer(images)

        self.transport = FakeTransport({"m": FakeModel(recorded, SHAPE)})
        with Client("fake", "m", transport=FakeTransport({"m": FakeModel(logits, SHAPE)})) as client:
            info = client.describe()
        images = np.random.default_rng(0).random((32, *SHAPE), np.float32)
        spec = TargetSpec("fake", ConnectionOptions(), info, requests_from_outputs(("probabilities",), info), images, 5.0)
        self.caller = Caller(spec, self.transport)
        self._is_ready = True

    def run(self, phase: ClosedPhase | OpenPhase, while_running: Callable[[PhaseRun, float], None] | None = None) -> list[CallRecord]:
        run = PhaseRun(self.caller, phase)
        self.begin = begin = time.monotonic() + 0.02
        run.begin(begin)
        if while_running is not None:
            while_running(run, begin)
        deadline = time.monotonic() + DEADLINE_S
        while not run.is_finished:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return sorted(run.take_records())


def at_rate(rate: float, seconds: float, max_in_flight: int = 512, size: int = 1) -> OpenPhase:
    times = arrival_times("constant", rate, seconds, 0.0, np.random.default_rng(0))
    return OpenPhase(times, np.full(len(times), size), max_in_flight)


def test_a_closed_loop_calls_until_its_end_with_the_batch_sizes_in_turn() -> None:
    def slowly(images: Array) -> dict[str, Array]:
        time.sleep(0.005)
        return logits(images)

    fake = Fake(slowly)
    sizes = np.array([1, 1, 2, 8])
    records = fake.run(ClosedPhase((0.0, 0.0, 0.05), 0.15, sizes))
    assert len(records) == len(fake.sizes) == fake.transport.calls["m"]
    assert sum(record.images for record in records) == sum(fake.sizes) == fake.transport.images["m"]
    assert set(fake.sizes) == {1, 2, 8}
    assert all(record.failure is None and record.ended - record.intended >= 0.005 for record in records)
    assert records[-1].intended < fake.begin + 0.15 <= max(record.ended for record in records)


@pytest.fixture
def stalling() -> Fake:
    """A server that answers at once but for 0.2 s, in which everything waits."""

    def answer(images: Array) -> dict[str, Array]:
        now = time.monotonic() - fake.begin
        if 0.1 < now < 0.3:
            time.sleep(0.3 - now)
        return logits(images)

    fake = Fake(answer)
    return fake


def test_a_stall_is_in_the_latencies_of_an_open_loop(stalling: Fake) -> None:
    records = stalling.run(at_rate(200, 0.4))
    assert len(records) == 80
    late = np.array([record.ended - record.intended for record in records])
    # Each of the 40 calls of the stall waits for its end, at most 0.2 s.
    assert 25 <= np.count_nonzero(late > 0.05) <= 45
    assert np.quantile(late, 0.99) > 0.15
    recording = Recording(0.6)
    recording.begin_at(stalling.begin)
    recording.add(records)
    latency = recording.latency()
    assert latency is not None
    assert latency.p99 > 150
    # One caller in a closed loop makes a single call in the stall.
    closed = stalling.run(ClosedPhase((0.0,), 0.35, np.array([1])))
    assert sum(record.ended - record.intended > 0.05 for record in closed) == 1


def test_a_call_that_finds_no_free_slot_is_unsent_and_not_late() -> None:
    gate = threading.Event()
    fake = Fake(lambda images: (gate.wait(DEADLINE_S), logits(images))[1])

    def open_gate(run: PhaseRun, begin: float) -> None:
        time.sleep(begin + 0.15 - time.monotonic())
        gate.set()

    records = fake.run(at_rate(100, 0.2, max_in_flight=4), open_gate)
    unsent = [record for record in records if record.failure == UNSENT]
    assert len(records) == 20
    assert len(fake.sizes) == 20 - len(unsent)
    assert 8 <= len(unsent) <= 13  # those from 0.04 to 0.15 s
    assert all(record.late_s == 0 for record in unsent)


@contextmanager
def busy_interpreter() -> Iterator[None]:
    """A thread that keeps the interpreter: others get it once in 30 ms."""
    before, stop = sys.getswitchinterval(), threading.Event()
    sys.setswitchinterval(0.03)

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_blocked_generator_is_late_by_its_own_fault() -> None:
    fake = Fake()
    with busy_interpreter():
        records = fake.run(at_rate(200, 0.1))
    assert sum(record.late_s > LATE_S for record in records) > len(records) / 2


def test_failures_have_the_class_of_their_error_and_callers_pause_after_them() -> None:
    def refuse(images: Array) -> dict[str, Array]:
        raise NotReadyError("the queue is full")

    records = Fake(refuse).run(ClosedPhase((0.0, 0.0), 0.2, np.array([1])))
    assert {record.failure for record in records} == {"NotReadyError"}
    assert len(records) <= 2 * 5


@pytest.mark.parametrize(
    "wrong", [lambda images: {"logits": np.full((len(images), 3), np.nan, np.float32)}, lambda images: logits(images[:1])]
)
def test_a_wrong_answer_is_a_failure(wrong: Callable[[Array], dict[str, Array]]) -> None:
    records = Fake(wrong).run(OpenPhase(np.array([0.0]), np.array([4]), 1))
    assert [record.failure for record in records] == ["ServerFailedError"]


def test_a_stopped_phase_ends_without_the_calls_that_are_to_come() -> None:
    fake = Fake()

    def stop(run: PhaseRun, begin: float) -> None:
        time.sleep(begin + 0.12 - time.monotonic())
        run.stop()

    records = fake.run(at_rate(20, 30.0), stop)
    assert len(records) == len(fake.sizes) == 3
