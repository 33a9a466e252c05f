"""Which requests run at the same time, and which wait: on one core (`recorded`), and on two."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from defensemble_server.runtime.backend_build import onnxruntime_library
from tests.support import backend_graphs as graphs
from tests.support.backend_calls import ANSWER_DEADLINE_S, good, infer_together, runs, wait_until
from tests.support.backend_triton import Triton, infer_inputs

SLOW, QUICK = np.array([[200_000]]), np.array([[1]])  # rounds of the loop: a fifth of a second or more, and nothing


@pytest.fixture(scope="module")
def two_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "records.jsonl"


@pytest.fixture(scope="module")
def two_cores(
    tmp_path_factory: pytest.TempPathFactory, backend_directory: Path, compiled: Callable[[str], Path], two_records: Path
) -> Iterator[Triton]:
    """A server on the recording stand-in, with two cores."""
    environment = {"RECORD_LIBRARY": str(onnxruntime_library()), "RECORD_FILE": str(two_records)}
    settings = {"library": str(compiled("recorder"))}
    with Triton(tmp_path_factory.mktemp("two-cores"), backend_directory, settings, environment, verbose=True, cores=2) as server:
        yield server


class Calls:
    """Calls that were sent, and their errors as they are answered (None: a response)."""

    def __init__(self, triton: Triton, record_file: Path) -> None:
        self._triton = triton
        self._record_file = record_file
        self.answered: Queue[InferenceServerException | None] = Queue()

    def send(self, name: str, rounds: Any) -> Any:
        return self._triton.client.async_infer(name, infer_inputs({"rounds": rounds}), lambda result, error: self.answered.put(error))

    def start_slow(self, name: str) -> None:
        """Send a slow request, and wait until it runs."""
        before = len(runs(self._record_file, name))
        self.send(name, SLOW)
        wait_until(lambda: len(runs(self._record_file, name)) > before, "the slow request runs")

    def wait_until_queued(self, name: str, count: int) -> None:
        prepared = rf"prepared: .* model: {name},"
        wait_until(lambda: len(re.findall(prepared, self._triton.log())) == count, f"{count} requests of {name} are in the queue")

    def cancel_in_queue(self, name: str) -> None:
        """Send the first request of a model, and cancel it while it waits."""
        call = self.send(name, QUICK)
        self.wait_until_queued(name, 1)
        call.cancel()

    def answers(self, count: int) -> list[InferenceServerException | None]:
        return [self.answered.get(timeout=ANSWER_DEADLINE_S) for _ in range(count)]


def rows_of(run: dict[str, Any]) -> int:
    rows: int = run["inputs"][0]["dims"][0]
    return rows


def test_one_model_runs_on_both_cores_at_the_same_time(two_cores: Triton, two_records: Path) -> None:
    name = two_cores.load(graphs.LOOP_CONFIG, graphs.loop())
    calls = Calls(two_cores, two_records)
    calls.start_slow(name)
    calls.start_slow(name)
    assert calls.answered.empty(), "the second run began before the first ended"
    assert calls.answers(2) == [None, None]


def test_each_core_has_a_thread_with_long_time_slices(two_cores: Triton) -> None:
    threads = [path.parent for path in Path(f"/proc/{two_cores.pid}/task").glob("*/sched")]
    if not threads or tuple(map(int, platform.release().split(".")[:2])) < (6, 12):
        pytest.skip("needs Linux 6.12 or later with /proc/PID/sched")
    pinned = {tuple(cores): thread for thread in threads if len(cores := os.sched_getaffinity(int(thread.name))) == 1}
    slices = [re.findall(r"se\.slice\s*:\s*(\d+)", (thread / "sched").read_text()) for thread in pinned.values()]
    assert slices == [["100000000"]] * 2


def test_the_cores_share_the_requests_that_wait(two_cores: Triton, two_records: Path) -> None:
    name = two_cores.load(graphs.LOOP_CONFIG, graphs.loop())
    calls = Calls(two_cores, two_records)
    calls.start_slow(name)
    calls.start_slow(name)
    for _ in range(12):
        calls.send(name, QUICK)
    calls.wait_until_queued(name, 14)
    assert calls.answers(14) == [None] * 14
    # Half of what waits, but no fewer than four, since smaller runs take more time a row.
    assert [rows_of(run) for run in runs(two_records, name)][2:] == [6, 4, 2]


@pytest.mark.parametrize("threads", ["2", "0"])
def test_a_run_with_a_thread_per_core_waits_until_both_are_free(two_cores: Triton, two_records: Path, threads: str) -> None:
    slow = two_cores.load(graphs.LOOP_CONFIG, graphs.loop())
    name = two_cores.load({**graphs.LOOP_CONFIG, **graphs.parameters(intra_op_thread_count=threads)}, graphs.loop())
    calls = Calls(two_cores, two_records)
    calls.start_slow(slow)
    calls.cancel_in_queue(name)
    calls.answers(2)
    assert runs(two_records, name) == []
    calls.send(name, QUICK)
    assert calls.answers(1) == [None]


def test_models_take_turns_on_one_core(recorded: Triton, record_file: Path) -> None:
    slow, other = (recorded.load(graphs.LOOP_CONFIG, graphs.loop()) for _ in range(2))
    calls = Calls(recorded, record_file)
    calls.start_slow(slow)
    calls.cancel_in_queue(other)
    calls.answers(2)
    assert runs(record_file, other) == [], "it was cancelled before its turn"


def test_tritons_own_queue_and_its_limit_hold_what_does_not_fit_into_the_next_run(recorded: Triton, record_file: Path) -> None:
    limited = {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 1}}, **graphs.parameters(max_joined_rows="1")}
    name = recorded.load({**graphs.LOOP_CONFIG, **limited}, graphs.loop())
    calls = Calls(recorded, record_file)
    calls.start_slow(name)
    for _ in range(10):
        calls.send(name, QUICK)
    refused = [error for error in calls.answers(11) if error is not None]
    assert 0 < len(refused) < 10
    assert all(error.status() == "StatusCode.UNAVAILABLE" for error in refused)


TOO_LATE = ("StatusCode.NOT_FOUND", "StatusCode.UNAVAILABLE")


def test_a_model_that_is_unloaded_answers_what_it_has_accepted(two_cores: Triton) -> None:
    answered = 0
    for _ in range(10):
        name = two_cores.load(graphs.AFFINE_CONFIG, graphs.affine())
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(infer_together, two_cores, name, [{"x": np.ones((1, 4), np.float32)}] * 40)
            two_cores.infer(name, {"x": np.ones((1, 4), np.float32)})
            two_cores.client.unload_model(name)
        for answer in answers.result():
            if isinstance(answer, InferenceServerException):
                assert answer.status() in TOO_LATE, answer
            else:
                answered += 1
                np.testing.assert_array_equal(answer["y"], np.full((1, 4), 3.0))
    assert answered > 0
    assert two_cores.alive()


def test_instances_are_removed_while_their_requests_run(two_cores: Triton) -> None:
    """Triton changes the number of instances without a reload of the model."""
    config = two_cores.repository / (name := two_cores.load(graphs.LOOP_CONFIG, graphs.loop())) / "config.pbtxt"
    text = config.read_text()
    rounds = [{"rounds": np.array([[20_000]])}] * 30
    for count in (3, 1, 2, 1):
        config.write_text(f"{text}\ninstance_group {{ count: {count} kind: KIND_CPU }}\n")
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(infer_together, two_cores, name, rounds)
            two_cores.client.load_model(name)
        for answer in answers.result():
            np.testing.assert_array_equal(good(answer)["done"], [[20_000]])
    assert two_cores.statistics(name)["fail"] == 0
    assert two_cores.alive()
