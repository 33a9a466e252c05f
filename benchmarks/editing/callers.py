"""Callers in processes of their own, one for each protocol: in the editor's process they would compete with it for one lock."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.editing.answers import Call, rows_of
from defensemble import Client

CONTEXT = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
_START_S = 120.0
_TIMEOUT_S = 60.0
# A server that refuses at once must not be flooded.
_AFTER_FAILURE_S = 0.05


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


@dataclass(frozen=True)
class Asking:
    """What the callers of one process ask: `callers` are their numbers, each with a client of its own."""

    url: str
    callers: tuple[int, ...]
    model: str
    pool: NDArray[np.float32]
    batch: int
    seed: int

    def work(self, stop: Event, begun: Callable[[], None]) -> list[Call]:
        """Ask in a thread for each caller, until `stop` is set; all their calls."""
        return in_threads(self.callers, lambda caller, own, first: _ask(self, caller, stop, own, first), begun)


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
        calls = [call for pipe in self._pipes for call in self._received(pipe, 2 * _TIMEOUT_S)]
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


def _ask(asking: Asking, caller: int, stop: Event, calls: list[Call], begun: threading.Barrier) -> None:
    with Client(asking.url, asking.model, timeout_s=_TIMEOUT_S) as client:
        number = 0
        while not stop.is_set():
            images = asking.pool[rows_of(asking.seed, caller, number, len(asking.pool), asking.batch)]
            calls.append(_called(client, images, caller, number))
            if calls[-1].failure is not None:
                stop.wait(_AFTER_FAILURE_S)
            if number == 0:
                begun.wait()
            number += 1


def _called(client: Client, images: NDArray[np.float32], caller: int, number: int) -> Call:
    sent = time.monotonic()
    answer: NDArray[Any] | None = None
    failure = None
    try:
        answer = client.predict(images).probabilities
    except Exception as error:  # whatever it was, the caller has no answer
        failure = f"{type(error).__name__}: {error}"
    return Call(caller, number, sent, time.monotonic(), answer, failure)
