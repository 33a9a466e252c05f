"""Callers that are killed with several calls in flight: forked from a process that has imported gRPC and never used it."""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.giving_up import ABORTED, ANSWERED, REFUSED, Outcome, transport_to
from benchmarks.aborting.patient import PATIENCE_S
from benchmarks.aborting.plan import OUTPUTS, Abort, planned
from benchmarks.common.callers import rows_of
from defensemble import OutputRequest, ServiceError

_PAUSE_S = 0.05
_LONGEST_LIFE_S = 120
_TOOK = struct.Struct("<d")
_SENT, _ANSWERED, _FAILED = b"s", b"a", b"f"


@dataclass(frozen=True)
class Killing:
    """One caller after the other: each makes a call, then puts several in flight at once, and is killed at a random moment."""

    url: str
    model: str
    pool: NDArray[np.float32]
    counts: Mapping[str, int]
    seed: int
    made: Synchronized[int]

    def work(self, stop: Event, begun: Callable[[], None]) -> list[Outcome]:
        """Kill all of them, unless `stop` is set before or there is no server for 30 s."""
        begun()
        outcomes: list[Outcome] = []
        for abort in planned(self.url.partition(":")[0], self.counts, self.seed):
            ends = time.monotonic() + PATIENCE_S
            while True:
                if stop.is_set() or time.monotonic() > ends:
                    return outcomes
                outcomes.append(self._killed(abort))
                if outcomes[-1].how != REFUSED:
                    break
                stop.wait(_PAUSE_S)
            with self.made.get_lock():
                self.made.value += 1
        return outcomes

    def _killed(self, abort: Abort) -> Outcome:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                signal.alarm(_LONGEST_LIFE_S)  # should our own process be killed meanwhile
                self._live(abort, writing)
            except ServiceError:
                pass  # the end of the pipe says it
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writing)
        seconds, told = 0.0, b""
        try:
            ready, _, _ = select.select([reading], [], [], PATIENCE_S)
            first = os.read(reading, _TOOK.size) if ready else b""
            if len(first) == _TOOK.size:
                began = time.monotonic()
                told = os.read(reading, 1)
                if abort.at_answer:
                    while set(told) == set(_SENT):
                        told += os.read(reading, 1)
                else:
                    time.sleep(abort.moment * _TOOK.unpack(first)[0])
                seconds = time.monotonic() - began
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with open(reading, "rb") as pipe:
            told += pipe.read()
        in_flight = told.count(_SENT) - told.count(_ANSWERED) - told.count(_FAILED)
        if len(first) != _TOOK.size or _FAILED in told:
            how, detail = REFUSED, "no answer"
        else:
            how, detail = (ABORTED if in_flight else ANSWERED), ""
        return Outcome(abort.protocol, abort.kind, how, seconds, in_flight, detail)

    def _live(self, abort: Abort, pipe: int) -> None:
        """The life of a caller, told over `pipe`: how long its first call took, then each call that it sends, and each one's end."""
        transport = transport_to(self.url)
        images = self.pool[rows_of(self.seed, 1, abort.number, len(self.pool), abort.batch)]
        outputs = [OutputRequest(name) for name in abort.wanted or OUTPUTS]
        began = time.monotonic()
        transport.infer(self.model, {"images": images}, outputs, PATIENCE_S)

        def call() -> None:
            os.write(pipe, _SENT)
            try:
                transport.infer(self.model, {"images": images}, outputs, PATIENCE_S)
            except ServiceError:
                os.write(pipe, _FAILED)
            else:
                os.write(pipe, _ANSWERED)

        os.write(pipe, _TOOK.pack(time.monotonic() - began))
        for _ in range(abort.in_flight):
            threading.Thread(target=call).start()
        signal.pause()
