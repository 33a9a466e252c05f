"""Callers in separate processes, one for each protocol: in the process of the editor, they would compete with it for the GIL."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from defensemble import RetryPolicy

CONTEXT = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
_START_S = 120.0
NO_RETRIES = RetryPolicy(max_retries=0)  # a measurement sees each failure
TIMEOUT_S = 60.0


Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class CallersDiedError(Exception):
    """A process of callers ended early or did not start."""


class Job(Protocol[Result_co]):
    """The work of one process of callers. It is pickled into that process."""

    @property
    def url(self) -> str:
        """The server's URL."""

    def run(self, stop: Event, on_started: Callable[[], None]) -> Sequence[Result_co]:
        """Call until `stop` is set or the work is done. `on_started` is called once, when calls are under way."""


def choose_rows(seed: int, caller: int, number: int, pool: int, batch: int) -> NDArray[np.int64]:
    """Choose `batch` different images of `pool` for a call."""
    rows: NDArray[np.int64] = np.random.default_rng((seed, caller, number)).choice(pool, batch, replace=False)
    return rows


def run_in_threads(
    callers: Sequence[int], make_calls: Callable[[int, list[Result], threading.Barrier], None], on_started: Callable[[], None]
) -> list[Result]:
    """Run `make_calls` in a thread for each caller, and return their results. `on_started` is called when all have passed the barrier."""
    calls: list[list[Result]] = [[] for _ in callers]
    first = threading.Barrier(len(callers) + 1)
    threads = [
        threading.Thread(target=make_calls, args=(caller, own, first), name=f"caller-{caller}")
        for caller, own in zip(callers, calls, strict=True)
    ]
    for thread in threads:
        thread.start()
    first.wait()
    on_started()
    for thread in threads:
        thread.join()
    return [call for own in calls for call in own]


class Callers(Generic[Result]):
    """Running callers. `stop` ends them and returns all results."""

    def __init__(self, jobs: Sequence[Job[Result]]) -> None:
        self._stop = CONTEXT.Event()
        self._pipes: list[Connection] = []
        self._processes = []
        for job in jobs:
            own_end, other_end = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_process, args=(job, self._stop, other_end), name=f"callers-{job.url}", daemon=True)
            process.start()
            other_end.close()
            self._pipes.append(own_end)
            self._processes.append(process)
        for pipe in self._pipes:
            self._receive(pipe, _START_S)

    def check(self) -> None:
        """Check that all processes are alive.

        Raises:
            CallersDiedError: A process has ended.
        """
        for process in self._processes:
            if not process.is_alive():
                raise CallersDiedError(f"{process.name} ended with status {process.exitcode}")

    @property
    def done(self) -> bool:
        """Whether every process has finished its work."""
        return all(pipe.poll(0) for pipe in self._pipes)

    def stop(self) -> list[Result]:
        """Let each caller finish its current call, and return the calls of all.

        Raises:
            CallersDiedError: A process ended without a result.
        """
        self._stop.set()
        calls = [call for pipe in self._pipes for call in self._receive(pipe, 2 * TIMEOUT_S)]
        for process in self._processes:
            process.join()
        return calls

    def end(self) -> None:
        """End all processes."""
        self._stop.set()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _receive(self, pipe: Connection, deadline_s: float) -> list[Result]:
        try:
            if not pipe.poll(deadline_s):
                raise CallersDiedError(f"the callers sent no result within {deadline_s:g} s")
            calls: list[Result] = pipe.recv()
        except EOFError as error:
            raise CallersDiedError("a process of callers ended early") from error
        return calls


@contextmanager
def running_callers(jobs: Sequence[Job[Result]]) -> Iterator[Callers[Result]]:
    """Start callers. Each has had a response when the block begins, and continues until it is stopped.

    Raises:
        CallersDiedError: The callers cannot start.
    """
    callers = Callers(jobs)
    try:
        yield callers
    finally:
        callers.end()


def _process(job: Job[Any], stop: Event, pipe: Connection) -> None:
    pipe.send(job.run(stop, lambda: pipe.send([])))
