"""Callers that call in a loop, and keep every response."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.callers import NO_RETRIES, TIMEOUT_S, choose_rows, run_in_threads
from benchmarks.editing.answers import Call
from defensemble import Client

# A server that rejects calls immediately must not be flooded.
_AFTER_FAILURE_S = 0.05


@dataclass(frozen=True)
class LoopingCallers:
    """The callers of one process: `callers` are their numbers, each with its own client."""

    url: str
    callers: tuple[int, ...]
    model: str
    pool: NDArray[np.float32]
    batch: int
    seed: int

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[Call]:
        """Call in a thread for each caller until `stop` is set. Returns all calls."""
        return run_in_threads(self.callers, lambda caller, own, first: _call_in_a_loop(self, caller, stop, own, first), on_started)


def _call_in_a_loop(job: LoopingCallers, caller: int, stop: Event, calls: list[Call], first: threading.Barrier) -> None:
    with Client(job.url, job.model, timeout_s=TIMEOUT_S, retry=NO_RETRIES) as client:
        number = 0
        while not stop.is_set():
            images = job.pool[choose_rows(job.seed, caller, number, len(job.pool), job.batch)]
            calls.append(_call(client, images, caller, number))
            if calls[-1].failure is not None:
                stop.wait(_AFTER_FAILURE_S)
            if number == 0:
                first.wait()
            number += 1


def _call(client: Client, images: NDArray[np.float32], caller: int, number: int) -> Call:
    sent = time.monotonic()
    probabilities: NDArray[Any] | None = None
    failure = None
    try:
        probabilities = client.predict(images).probabilities
    except Exception as error:  # whatever it was, the caller has no response
        failure = f"{type(error).__name__}: {error}"
    return Call(caller, number, sent, time.monotonic(), probabilities, failure)
