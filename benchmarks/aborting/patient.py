"""Callers that call again where a server is away, and compare every answer with the right one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.oracle import mistake
from benchmarks.aborting.plan import BATCHES, WANTED
from benchmarks.common.answers import Array
from benchmarks.common.callers import in_threads, rows_of
from defensemble import (
    Client,
    ConnectionFailedError,
    GrpcTransport,
    HttpTransport,
    NotReadyError,
    OutputRequest,
    ServerFailedError,
    ServiceError,
)

PATIENCE_S = 30.0
RIGHT, WRONG, LOST = "right", "wrong", "lost"
_TRANSIENT = (ConnectionFailedError, NotReadyError, ServerFailedError)  # ServerFailedError is INTERNAL, or HTTP 500
_PAUSE_S = 0.02  # between two attempts
_LONGEST_THOUGHT_S = 0.1  # between two calls: the machine is for the aborts too


@dataclass(frozen=True)
class PatientCall:
    """A call with all its attempts; times in seconds of `time.monotonic`, the same in all processes.

    `sent` is when the last attempt began. `failures` are the errors of the others.
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
class Patient:
    """The patient callers of one process, each with one client for the whole run."""

    url: str
    callers: tuple[int, ...]
    model: str
    pool: NDArray[np.float32]
    right: Mapping[str, Array]
    seed: int
    patience_s: float = PATIENCE_S

    def work(self, stop: Event, begun: Callable[[], None]) -> list[PatientCall]:
        """Call in a thread for each caller, until `stop` is set; all their calls."""
        return in_threads(self.callers, lambda caller, own, first: self._call_again_and_again(caller, stop, own, first), begun)

    def _call_again_and_again(self, caller: int, stop: Event, calls: list[PatientCall], first: threading.Barrier) -> None:
        generator = np.random.default_rng((self.seed, caller))
        transport = _ObservedGrpc(self.url) if self.url.startswith("grpc") else _ObservedHttp(self.url)
        with Client(self.url, self.model, timeout_s=self.patience_s, transport=transport) as client:
            while not stop.is_set():
                calls.append(self._call(client, transport, caller, len(calls), generator))
                if len(calls) == 1:
                    first.wait()
                stop.wait(float(generator.uniform(0, _LONGEST_THOUGHT_S)))

    def _call(
        self, client: Client, transport: _ObservedGrpc | _ObservedHttp, caller: int, number: int, generator: np.random.Generator
    ) -> PatientCall:
        rows = rows_of(self.seed, caller, number, len(self.pool), int(generator.choice(BATCHES)))
        wanted = WANTED[int(generator.integers(len(WANTED)))] or WANTED[0]  # our client always names them
        failures: list[str] = []
        began = time.monotonic()
        while True:
            sent = time.monotonic()
            try:
                answer = client.predict(self.pool[rows], outputs=wanted).received
                detail = mistake(answer, self.right, rows, wanted) or ""
                verdict = WRONG if detail else RIGHT
            except ServiceError as error:
                detail = f"{type(error).__name__}: {error}"
                if isinstance(error, ServerFailedError) and transport.answered:
                    verdict = WRONG  # the client refuses what arrived
                elif isinstance(error, _TRANSIENT) and time.monotonic() - began < self.patience_s:
                    failures.append(detail)
                    time.sleep(_PAUSE_S)
                    continue
                else:
                    verdict = LOST
            arrived = time.monotonic()
            if verdict == RIGHT and arrived - began > self.patience_s:
                verdict, detail = LOST, f"answered after {arrived - began:.1f} s"
            protocol = self.url.partition(":")[0]
            return PatientCall(protocol, caller, number, began, sent, arrived, verdict, detail, tuple(failures))


class _Observed:
    """A transport that remembers whether its last inference was answered: the client may refuse an answer afterwards."""

    answered = False

    def infer(
        self,
        model: str,
        inputs: Mapping[str, NDArray[np.float32]],
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
    ) -> dict[str, NDArray[Any]]:
        self.answered = False
        answer: dict[str, NDArray[Any]] = super().infer(model, inputs, outputs, timeout_s, version)  # type: ignore[misc]
        self.answered = True
        return answer


class _ObservedGrpc(_Observed, GrpcTransport):
    pass


class _ObservedHttp(_Observed, HttpTransport):
    pass
