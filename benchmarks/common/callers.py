"""Callers in processes of their own, one for each protocol: in the editor's process they would compete with it for one lock."""

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

CONTEXT = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
_START_S = 120.0
TIMEOUT_S = 60.0


Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class CallersGoneError(Exception):
    """A process of callers ended before it was told to, or never began."""


class Job(Protocol[Result_co]):
    """What one process of callers does; it is pickled into that process."""

    @property
    def url(self) -> str:
        """The server that it calls."""

    def work(self, stop: Event, begun: Callable[[], None]) -> Sequence[Result_co]:
        """Call until `stop` is set, or until there is nothing left to do; `begun` is called once, when calls are under way."""


def rows_of(seed: int, caller: int, number: int, pool: int, batch: int) -> NDArray[np.int64]:
    """Which images of `pool` a call asks about, none of them twice."""
    rows: NDArray[np.int64] = np.random.default_rng((seed, caller, number)).choice(pool, batch, replace=False)
    return rows


def in_threads(
    callers: Sequence[int], ask: Callable[[int, list[Result], threading.Barrier], None], begun: Callable[[], None]
) -> list[Result]:
    """Run `ask` in a thread for each caller; all that they add to their lists. `begun` is called when all have passed the barrier."""
    calls: list[list[Result]] = [[] for _ in callers]
    first = threading.Barrier(len(callers) + 1)
    threads = [
        threading.Thread(target=ask, args=(caller, own, first), name=f"caller-{caller}") for caller, own in zip(callers, calls, strict=True)
    ]
    for thread in threads:
        thread.start()
    first.wait()
    begun()
    for thread in threads:
        thread.join()
    return [call for own in calls for call in own]


class Callers(Generic[Result]):
    """Callers that are at work; `stop` ends them and returns what all of them found."""

    def __init__(self, jobs: Sequence[Job[Result]]) -> None:
        self._stop = CONTEXT.Event()
        self._pipes: list[Connection] = []
        self._processes = []
        for job in jobs:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_process, args=(job, self._stop, theirs), name=f"callers-{job.url}", daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            self._received(pipe, _START_S)

    def check(self) -> None:
        """Looks whether all processes are there.

        Raises:
            CallersGoneError: One is not.
        """
        for process in self._processes:
            if not process.is_alive():
                raise CallersGoneError(f"{process.name} ended with status {process.exitcode}")

    @property
    def done(self) -> bool:
        """Whether every process has nothing left to do."""
        return all(pipe.poll(0) for pipe in self._pipes)

    def stop(self) -> list[Result]:
        """Lets each caller end the call that it is at, and returns the calls of all.

        Raises:
            CallersGoneError: Some of them cannot tell any more.
        """
        self._stop.set()
        calls = [call for pipe in self._pipes for call in self._received(pipe, 2 * TIMEOUT_S)]
        for process in self._processes:
            process.join()
        return calls

    def end(self) -> None:
        """Leaves no process behind."""
        self._stop.set()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()

    def _received(self, pipe: Connection, deadline_s: float) -> list[Result]:
        try:
            if not pipe.poll(deadline_s):
                raise CallersGoneError(f"callers said nothing for {deadline_s:g} s")
            calls: list[Result] = pipe.recv()
        except EOFError as error:
            raise CallersGoneError("a process of callers ended before it was told to") from error
        return calls


@contextmanager
def calling(jobs: Sequence[Job[Result]]) -> Iterator[Callers[Result]]:
    """Callers that have each had an answer, and go on until they are stopped.

    Raises:
        CallersGoneError: They cannot begin.
    """
    callers = Callers(jobs)
    try:
        yield callers
    finally:
        callers.end()


def _process(job: Job[Any], stop: Event, pipe: Connection) -> None:
    pipe.send(job.work(stop, lambda: pipe.send([])))
