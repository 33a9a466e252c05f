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
from defensemble.load.result import ClientCounters
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
        wait_until(lambda: run.is_finished)
        return sorted(run.take_records())


def at_rate(rate: float, seconds: float, max_in_flight: int = 512, size: int = 1) -> OpenPhase:
    times = arrival_times("constant", rate, seconds, 0.0, np.random.default_rng(0))
    return OpenPhase(times, np.full(len(times), size), max_in_flight)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_closed_loop_calls_until_its_end_with_the_batch_sizes_in_turn() -> None:
    fake, runs = Fake(), []
    sizes = np.array([1, 1, 2, 8])

    def stop(run: PhaseRun, begin: float) -> None:
        wait_until(lambda: set(fake.sizes) == {1, 2, 8})  # each caller begins at another one
        run.stop()

    records = fake.run(ClosedPhase((0.0, 0.0, 0.02), 60.0, sizes), stop)
    assert len(records) == len(fake.sizes) == fake.transport.calls["m"]
    assert sum(record.images for record in records) == sum(fake.sizes) == fake.transport.images["m"]
    assert fake.caller.take_counters() == ClientCounters(fake.transport.calls["m"], 0, fake.transport.images["m"])
    assert fake.caller.take_counters() == ClientCounters(0, 0, 0)
    assert all(record.failure is None and record.ended > record.intended >= fake.begin for record in records)
    records = fake.run(ClosedPhase((0.0, 0.0), 0.05, sizes), lambda run, begin: runs.append(run))
    assert all(record.intended < fake.begin + 0.05 for record in records)
    assert len(runs[0].busy_s) == 2
    assert min(runs[0].busy_s) >= 0.05


class Gated(Fake):
    """A fake server whose answers wait until it is opened."""

    def __init__(self) -> None:
        super().__init__(lambda images: (self.gate.wait(DEADLINE_S), logits(images))[1])
        self.gate = threading.Event()
        self.opened = 0.0

    def run_and_open(self, phase: ClosedPhase | OpenPhase, after_s: float, calls: int) -> list[CallRecord]:
        """Run a phase, and open the gate once it is so old and has sent so many calls."""
        self.gate.clear()
        self.sizes.clear()

        def open_gate(run: PhaseRun, begin: float) -> None:
            wait_until(lambda: time.monotonic() > begin + after_s and len(self.sizes) >= calls)
            self.opened = time.monotonic()
            self.gate.set()

        return self.run(phase, open_gate)


def test_a_stall_is_in_the_latencies_of_an_open_loop() -> None:
    stalling = Gated()
    records = stalling.run_and_open(at_rate(200, 0.25), 0.2, 40)
    assert len(records) == 50
    stalled = [record for record in records if record.intended < stalling.opened]
    assert len(stalled) >= 40
    assert all(record.ended >= stalling.opened for record in stalled)
    recording = Recording(0.3)
    recording.begin_at(stalling.begin)
    recording.add(records)
    latency = recording.latency()
    assert latency is not None
    assert latency.p99 > 150
    # One caller in a closed loop makes a single call in the stall.
    closed = stalling.run_and_open(ClosedPhase((0.0,), 0.05, np.array([1])), 0.05, 1)
    assert len(closed) == 1


def test_a_call_that_finds_no_free_slot_is_unsent_and_not_late() -> None:
    fake = Gated()
    records = fake.run_and_open(at_rate(100, 0.1, max_in_flight=4), 0.1, 4)
    unsent = [record for record in records if record.failure == UNSENT]
    assert (len(records), len(unsent), len(fake.sizes)) == (10, 6, 4)
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

    fake = Fake(refuse)
    records = fake.run(ClosedPhase((0.0, 0.0), 0.2, np.array([1])))
    assert fake.caller.take_counters() == ClientCounters(len(records), len(records), 0)
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
        wait_until(lambda: len(fake.sizes) == 3)
        run.stop()

    records = fake.run(OpenPhase(np.array([0.0, 0.01, 0.02, 3600.0]), np.ones(4, np.int64), 4), stop)
    assert len(records) == len(fake.sizes) == 3


@pytest.mark.parametrize(
    "phase",
    [ClosedPhase((0.0, 0.0), 60.0, np.array([33])), OpenPhase(np.array([0.0, 3600.0]), np.array([33, 1]), 2)],
    ids=["closed", "open"],
)
def test_an_error_that_is_no_failed_call_ends_the_phase_and_is_raised(phase: ClosedPhase | OpenPhase) -> None:
    with pytest.raises(ZeroDivisionError):  # there are 32 images
        Fake().run(phase)
