"""Callers that call in a loop while faults are injected, and check every answer at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.callers import NO_RETRIES, choose_rows, run_in_threads
from benchmarks.common.observed import ObservedTransport, observed_transport
from benchmarks.common.oracle import find_mistake
from defensemble import Client, RetriesExhaustedError, ServerFailedError, ServiceError

RIGHT, WRONG, REJECTED, FAILED = "right", "wrong", "rejected", "failed"
"""Equal to numpy's; different; an answer that the client does not accept, such as NaN; no answer."""
OUTPUTS = ("probabilities", "mutual_information")
_BATCHES = (1, 2, 4)
_MAX_PAUSE_S = 0.03  # between two calls: the machine is for the fault too
_AFTER_FAILURE_S = 0.02  # a server that refuses at once must not be flooded


@dataclass(frozen=True)
class Call:
    """A call. Times are in seconds of `time.monotonic`, which is the same in all processes.

    `detail` is what is wrong with the answer, or the class of the error.
    """

    protocol: str
    caller: int
    number: int
    sent: float
    arrived: float
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class SteadyCallers:
    """The callers of one process, each with a client of its own.

    Attributes:
        urls: One server, without retries, or several, with the default policy.
        callers: Their numbers.
        model: Name of the model.
        pool: The images.
        right: The expected outputs for the pool.
        seed: Seed of batches and pauses.
        timeout_s: Timeout of a call.
    """

    urls: tuple[str, ...]
    callers: tuple[int, ...]
    model: str
    pool: NDArray[np.float32]
    right: Mapping[str, Array]
    seed: int
    timeout_s: float = 5.0

    @property
    def url(self) -> str:
        """The first URL."""
        return self.urls[0]

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[Call]:
        """Call in a thread for each caller until `stop` is set. Returns all calls."""
        return run_in_threads(self.callers, lambda caller, own, first: self._call_in_a_loop(caller, stop, own, first), on_started)

    def _call_in_a_loop(self, caller: int, stop: Event, calls: list[Call], first: threading.Barrier) -> None:
        generator = np.random.default_rng((self.seed, caller))
        transports = [observed_transport(url) for url in self.urls]
        retry = NO_RETRIES if len(self.urls) == 1 else None
        with Client(self.urls, self.model, timeout_s=self.timeout_s, transport=transports, retry=retry) as client:
            while not stop.is_set():
                calls.append(self._call(client, transports, caller, len(calls), generator))
                if len(calls) == 1:
                    first.wait()
                stop.wait(float(generator.uniform(0, _MAX_PAUSE_S)) + (_AFTER_FAILURE_S if calls[-1].verdict == FAILED else 0.0))

    def _call(self, client: Client, transports: list[ObservedTransport], caller: int, number: int, generator: np.random.Generator) -> Call:
        rows = choose_rows(self.seed, caller, number, len(self.pool), int(generator.choice(_BATCHES)))
        sent = time.monotonic()
        try:
            received = client.predict(self.pool[rows], outputs=OUTPUTS).received
            detail = find_mistake(received, self.right, rows, OUTPUTS) or ""
            verdict = WRONG if detail else RIGHT
        except ServiceError as error:
            cause = error.attempts[-1].error if isinstance(error, RetriesExhaustedError) else error
            is_rejected = isinstance(cause, ServerFailedError) and any(transport.has_response for transport in transports)
            verdict, detail = (REJECTED, str(cause)) if is_rejected else (FAILED, type(cause).__name__)
        return Call(self.url.partition(":")[0], caller, number, sent, time.monotonic(), verdict, detail)
