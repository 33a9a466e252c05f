"""Errors are sent 50 ms after their request was received, and nothing else waits for that: no core, no unload, no drain."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from defensemble_server.runtime.backend_build import onnxruntime_library
from tests.support import backend_graphs as graphs
from tests.support.backend_calls import ANSWER_DEADLINE_S, infer_together, runs, wait_until
from tests.support.backend_triton import Triton, infer_inputs

FAILING = {"index": np.array([[999]])}
DELAY_S = 0.05
CALLERS = 4
PHASE_S = 0.15


def assert_all_failed(answers: Sequence[object], name: str) -> None:
    for answer in answers:
        assert isinstance(answer, InferenceServerException), answer
        assert name in str(answer.message())
        assert "out of data bounds" in str(answer.message())


@contextmanager
def callers_that_fail(triton: Triton, name: str) -> Iterator[None]:
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            with pytest.raises(InferenceServerException, match="out of data bounds"):
                triton.infer(name, FAILING)

    with ThreadPoolExecutor(CALLERS) as pool:
        calling = [pool.submit(call) for _ in range(CALLERS)]
        try:
            yield
        finally:
            stop.set()
    for each in calling:
        each.result()


def test_a_model_that_always_fails_leaves_the_cores_to_the_others(recorded: Triton) -> None:
    other, failing = recorded.load(graphs.AFFINE_CONFIG, graphs.affine()), recorded.load(graphs.GATHER_CONFIG, graphs.gather())

    def answered() -> int:
        end, count = time.monotonic() + PHASE_S, 0
        while time.monotonic() < end:
            recorded.infer(other, {"x": np.ones((1, 4), np.float32)})
            count += 1
        return count

    answered()
    undisturbed, among_failures = 0, 0
    for _ in range(2):
        undisturbed += answered()
        with callers_that_fail(recorded, failing):
            among_failures += answered()
    assert among_failures > undisturbed / 3


def test_an_error_is_sent_at_the_earliest_after_the_delay(triton: Triton) -> None:
    name = triton.load(graphs.GATHER_CONFIG, graphs.gather())
    delays: Queue[float] = Queue()
    for _ in range(20):
        begin = time.monotonic()
        triton.client.async_infer(name, infer_inputs(FAILING), lambda result, error, begin=begin: delays.put(time.monotonic() - begin))
    assert min(delays.get(timeout=ANSWER_DEADLINE_S) for _ in range(20)) >= DELAY_S
    assert triton.statistics(name)["fail"] == 20


def seconds_after_the_run_before(triton: Triton, record_file: Path, slow: str, failing: str) -> float:
    """Queue a failing request behind a slow run on the only core; return the time between their answers."""
    answered: Queue[float] = Queue()

    def callback(result: object, error: object) -> None:
        answered.put(time.monotonic())

    before = len(runs(record_file, slow))
    triton.client.async_infer(slow, infer_inputs({"rounds": np.array([[200_000]])}), callback)
    wait_until(lambda: len(runs(record_file, slow)) > before, "the slow request runs")
    triton.client.async_infer(failing, infer_inputs(FAILING), callback)
    first, second = (answered.get(timeout=ANSWER_DEADLINE_S) for _ in range(2))
    return second - first


def test_the_delay_counts_from_the_receipt_of_the_request(recorded: Triton, record_file: Path) -> None:
    """A request that waited longer than the delay for its core gets its error at once."""
    slow, failing = recorded.load(graphs.LOOP_CONFIG, graphs.loop()), recorded.load(graphs.GATHER_CONFIG, graphs.gather())
    # Several attempts: a stall of the machine may delay one.
    assert any(seconds_after_the_run_before(recorded, record_file, slow, failing) < DELAY_S for _ in range(10))


def unload_while_errors_wait(triton: Triton, record_file: Path) -> None:
    name = triton.load(graphs.GATHER_CONFIG, graphs.gather())

    def all_have_run() -> bool:
        single = [run for run in runs(record_file, name) if run["inputs"][0]["dims"][0] == 1]
        return len(single) >= 10

    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(infer_together, triton, name, [FAILING] * 10)
        wait_until(all_have_run, "each request has run, which takes less time than the delay")
        triton.client.unload_model(name)
    assert_all_failed(answers.result(), name)
    wait_until(lambda: not triton.client.is_model_ready(name), "the model is gone")


def test_a_model_is_unloaded_while_its_errors_wait(recorded: Triton, record_file: Path) -> None:
    for _ in range(3):
        unload_while_errors_wait(recorded, record_file)
    assert recorded.alive()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_server_ends_while_errors_wait(tmp_path: Path, backend_directory: Path, number: signal.Signals) -> None:
    settings = {"library": str(onnxruntime_library()), "drain_seconds": "2"}
    running = Triton(tmp_path, backend_directory, settings)
    try:
        name = running.__enter__().load(graphs.GATHER_CONFIG, graphs.gather())
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(infer_together, running, name, [FAILING] * 10)
            wait_until(lambda: "out of data bounds" in running.log(), "a request has failed")
            os.kill(running.pid, number)
        assert_all_failed(answers.result(), name)
        assert running.wait() == 0
    finally:
        running.stop()
