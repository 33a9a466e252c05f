"""Callers that repeat a call while the server is down, and compare every response with the expected one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.synchronize import Event

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.plan import BATCHES, OUTPUT_CHOICES
from benchmarks.common.answers import Array
from benchmarks.common.callers import NO_RETRIES, choose_rows, run_in_threads
from benchmarks.common.observed import ObservedTransport, observed_transport
from benchmarks.common.oracle import find_mistake
from defensemble import (
    Client,
    ConnectionFailedError,
    NotReadyError,
    ServerFailedError,
    ServiceError,
)

PATIENCE_S = 30.0
RIGHT, WRONG, LOST = "right", "wrong", "lost"
_TRANSIENT = (ConnectionFailedError, NotReadyError, ServerFailedError)  # ServerFailedError is INTERNAL, or HTTP 500
_PAUSE_S = 0.02  # between two attempts
_MAX_PAUSE_S = 0.1  # between two calls: the machine is for the aborts too


@dataclass(frozen=True)
class PatientCall:
    """A call with all its attempts. Times are in seconds of `time.monotonic`, which is the same in all processes.

    `sent` is the start of the last attempt; `failures` are the errors of the others.
    """

    protocol: str
    caller: int
    number: int
    began: float
    sent: float
    arrived: float
    verdict: str
    detail: str = ""
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class PatientCallers:
    """The patient callers of one process, each with one client for the whole run."""

    url: str
    callers: tuple[int, ...]
    model: str
    pool: NDArray[np.float32]
    right: Mapping[str, Array]
    seed: int
    patience_s: float = PATIENCE_S

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[PatientCall]:
        """Call in a thread for each caller until `stop` is set. Returns all calls."""
        return run_in_threads(self.callers, lambda caller, own, first: self._call_in_a_loop(caller, stop, own, first), on_started)

    def _call_in_a_loop(self, caller: int, stop: Event, calls: list[PatientCall], first: threading.Barrier) -> None:
        generator = np.random.default_rng((self.seed, caller))
        transport = observed_transport(self.url)
        with Client(self.url, self.model, timeout_s=self.patience_s, transport=transport, retry=NO_RETRIES) as client:
            while not stop.is_set():
                calls.append(self._call(client, transport, caller, len(calls), generator))
                if len(calls) == 1:
                    first.wait()
                stop.wait(float(generator.uniform(0, _MAX_PAUSE_S)))

    def _call(self, client: Client, transport: ObservedTransport, caller: int, number: int, generator: np.random.Generator) -> PatientCall:
        rows = choose_rows(self.seed, caller, number, len(self.pool), int(generator.choice(BATCHES)))
        outputs = OUTPUT_CHOICES[int(generator.integers(len(OUTPUT_CHOICES)))] or OUTPUT_CHOICES[0]  # our client always names its outputs
        failures: list[str] = []
        began = time.monotonic()
        while True:
            sent = time.monotonic()
            try:
                outputs_by_name = client.predict(self.pool[rows], outputs=outputs).received
                detail = find_mistake(outputs_by_name, self.right, rows, outputs) or ""
                verdict = WRONG if detail else RIGHT
            except ServiceError as error:
                detail = f"{type(error).__name__}: {error}"
                if isinstance(error, ServerFailedError) and transport.has_response:
                    verdict = WRONG  # the client rejects the response
                elif isinstance(error, _TRANSIENT) and time.monotonic() - began < self.patience_s:
                    failures.append(detail)
                    time.sleep(_PAUSE_S)
                    continue
                else:
                    verdict = LOST
            arrived = time.monotonic()
            if verdict == RIGHT and arrived - began > self.patience_s:
                verdict, detail = LOST, f"response after {arrived - began:.1f} s"
            protocol = self.url.partition(":")[0]
            return PatientCall(protocol, caller, number, began, sent, arrived, verdict, detail, tuple(failures))
