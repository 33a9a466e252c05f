"""Runs a query attack on many images in worker processes, and joins their queries to batches."""

from __future__ import annotations

import os
import pickle
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._exceptions import DefensembleError, InputError, WorkerEndedError
from .._worker_process import reason_of_end, start_worker
from .base import InputType, QueryAttack
from .lane_worker import work
from .lanes import AttackSettings, AttackTask, Finished, Images


class AttackError(RuntimeError):
    """An attack raised an exception, which is a bug. The text has its traceback."""


@dataclass(frozen=True)
class Questions:
    """Images to ask the target about. Call `answer` or `fail` once, from any thread.

    All unanswered queries of an attacked image are in one `Questions`, next to each other and in order.

    Attributes:
        positions: int64 (k,): the number of the attacked image, for each query.
        images: float32 (k, C, H, W), as they are to be sent.

    Example:
        >>> questions.answer(predict(questions.images).argmax(1))
    """

    positions: NDArray[np.int64]
    images: Images
    _pool: AttackPool
    _parts: list[_Part]

    def answer(self, answers: NDArray[Any]) -> None:
        """Give the attacks the responses: (k,), the classes or the margins."""
        answers = np.asarray(answers)
        kinds = "iu" if self._pool.settings.attack.answer == "class" else "f"
        if answers.shape != self.positions.shape or answers.dtype.kind not in kinds:
            expected = "integers" if kinds == "iu" else "floating-point numbers"
            raise ValueError(f"expected {len(self.positions)} {expected} as responses; got {answers.dtype} of shape {answers.shape}")
        self._pool._answered(self._parts, answers)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the thread that iterates over `AttackPool.run`."""
        self._pool._failed(error)


class AttackPool:
    """Worker processes that run a query attack on many images at once.

    Each image is attacked as if it were the only one, whatever the number of workers and lanes. In a script, use it below
    `if __name__ == "__main__"`, because the workers are spawned.

    Example:
        >>> with AttackPool(Square(), budget=5000) as pool:
        ...     for event in pool.run(tasks):
        ...         if isinstance(event, Questions):
        ...             event.answer(margins(event.images))
        ...         else:
        ...             print(event.position, event.distance)
    """

    def __init__(
        self,
        attack: QueryAttack,
        *,
        budget: int | None,
        input: InputType = "float32",
        workers: int = 2,
        lanes: int = 64,
        max_batch: int = 64,
        in_flight: int = 2,
    ) -> None:
        """Start the workers.

        Args:
            attack: The attack.
            budget: Most queries of an image; None for no limit.
            input: Queries are rounded to k/255 if it is `8bit`, as are the images themselves.
            workers: Number of processes.
            lanes: Images that a worker attacks at once.
            max_batch: Most images of one `Questions`.
            in_flight: While as many `Questions` are unanswered, queries wait for others until they fill a batch.

        Raises:
            InputError: A number is below 1.
        """
        numbers = {"budget": budget, "workers": workers, "lanes": lanes, "max_batch": max_batch, "in_flight": in_flight}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1; got {number}")
        self.settings = AttackSettings(attack, budget, input, max_batch)
        self._lanes = lanes
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._unanswered = 0
        self._error: BaseException | None = None
        self._woken, self._wake = os.pipe()
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_start(self.settings))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AttackPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and their attacks."""
        with self._lock:
            workers, self._workers = self._workers, []
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.join()
                worker.process.close()
                worker.connection.close()
            if workers:
                os.close(self._woken)
                os.close(self._wake)

    def run(self, tasks: Iterable[AttackTask]) -> Iterator[Questions | Finished]:
        """Attack images, and yield what to ask and what was found.

        Args:
            tasks: The images. They are taken when a lane is free.

        Raises:
            WorkerEndedError: A worker process was killed.
            AttackError: The attack raised an exception.
            DefensembleError: The attack raised this error, for example `MissingExtraError`.
        """
        waiting = iter(tasks)
        parts: deque[_Part] = deque()
        for worker in self._workers * self._lanes:  # in turn, so that few images are spread over all workers
            self._feed(worker, waiting)
        while parts or any(worker.active for worker in self._workers):
            while parts and (self._unanswered < self._in_flight or sum(part.count for part in parts) >= self.settings.max_batch):
                yield self._questions(parts)
            connections: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if worker.active}
            for ready in wait([*connections, self._woken]) if connections else ():
                if ready == self._woken:
                    assert self._error is not None
                    raise self._error
                worker = connections[ready]
                asked, finished = worker.receive()
                parts.extend(asked)
                for event in finished:
                    worker.active.pop(event.position)
                    self._feed(worker, waiting)
                    yield event

    def _feed(self, worker: _Worker, waiting: Iterator[AttackTask]) -> None:
        """Start the next image."""
        for task in waiting:
            worker.active[task.position] = task.image.pixels.shape
            worker.send(task)
            break

    def _questions(self, parts: deque[_Part]) -> Questions:
        taken = [parts.popleft()]
        while parts and sum(part.count for part in taken) + parts[0].count <= self.settings.max_batch:
            taken.append(parts.popleft())
        with self._lock:
            self._unanswered += 1
        positions = np.repeat(np.array([part.position for part in taken], np.int64), [part.count for part in taken])
        return Questions(positions, np.concatenate([part.images for part in taken]), self, taken)

    def _answered(self, parts: list[_Part], answers: NDArray[Any]) -> None:
        by_worker: dict[int, tuple[_Worker, list[tuple[int, NDArray[Any]]]]] = {}
        start = 0
        for part in parts:
            message = by_worker.setdefault(id(part.worker), (part.worker, []))[1]
            message.append((part.position, answers[start : start + part.count]))
            start += part.count
        with self._lock:
            self._unanswered -= 1
            if self._workers:  # a late response after `close` is dropped
                for worker, message in by_worker.values():
                    worker.send(message)

    def _failed(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None and self._workers:
                self._error = error
                os.write(self._wake, b"!")


@dataclass(frozen=True)
class _Part:
    """The unanswered query of one image."""

    worker: _Worker
    position: int
    images: Images

    @property
    def count(self) -> int:
        return len(self.images)


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    active: dict[int, tuple[int, ...]] = field(default_factory=dict)  # shapes of its images
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: Any) -> None:
        try:
            with self.lock:
                self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # `receive` raises the error, because the connection has ended in this direction too

    def receive(self) -> tuple[list[_Part], list[Finished]]:
        try:
            message = self.connection.recv()
            if isinstance(message, DefensembleError):
                raise message
            if isinstance(message, str):
                raise AttackError(f"an attack raised an exception in a worker process:\n{message}")
            counts, finished = message
            values = np.frombuffer(self.connection.recv_bytes(), np.float32) if counts else np.empty(0, np.float32)
        except (EOFError, ConnectionResetError):
            self.process.join()
            advice = "use fewer workers or lanes. Completed queries can be resumed."
            raise WorkerEndedError(reason_of_end(self.process.exitcode, "a worker process of the attack", advice)) from None
        parts = []
        start = 0
        for position, count in counts:
            shape = (count, *self.active[position])
            size = int(np.prod(shape))
            parts.append(_Part(self, position, values[start : start + size].reshape(shape)))
            start += size
        return parts, finished


def _start(settings: AttackSettings) -> _Worker:
    return _Worker(*start_worker(work, pickle.dumps(settings), name="attack worker"))
