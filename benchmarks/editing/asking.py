"""Callers that ask again and again, and keep every answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.callers import TIMEOUT_S, in_threads, rows_of
from benchmarks.editing.answers import Call
from defensemble import Client

# A server that refuses at once must not be flooded.
_AFTER_FAILURE_S = 0.05


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


def _ask(asking: Asking, caller: int, stop: Event, calls: list[Call], begun: threading.Barrier) -> None:
    with Client(asking.url, asking.model, timeout_s=TIMEOUT_S) as client:
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
