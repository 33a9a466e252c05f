"""Callers that are killed with several calls in flight. They are forked from a process that imported gRPC but never used it."""

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
from benchmarks.aborting.plan import Abort, draw_aborts
from benchmarks.common.callers import choose_rows
from benchmarks.common.oracle import OUTPUTS
from defensemble import OutputRequest, ServiceError

_PAUSE_S = 0.05
_MAX_LIFE_S = 120
_TOOK = struct.Struct("<d")
_SENT, _ANSWERED, _FAILED = b"s", b"a", b"f"


@dataclass(frozen=True)
class KilledCallers:
    """A sequence of callers. Each makes a call, then starts several together, and is killed at a random moment."""

    url: str
    model: str
    pool: NDArray[np.float32]
    counts: Mapping[str, int]
    seed: int
    made: Synchronized[int]

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[Outcome]:
        """Kill all callers; end when `stop` is set, or after 30 s without a server."""
        on_started()
        outcomes: list[Outcome] = []
        for abort in draw_aborts(self.url.partition(":")[0], self.counts, self.seed):
            ends = time.monotonic() + PATIENCE_S
            while True:
                if stop.is_set() or time.monotonic() > ends:
                    return outcomes
                outcomes.append(self._kill_caller(abort))
                if outcomes[-1].how != REFUSED:
                    break
                stop.wait(_PAUSE_S)
            with self.made.get_lock():
                self.made.value += 1
        return outcomes

    def _kill_caller(self, abort: Abort) -> Outcome:
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read_end)
                signal.alarm(_MAX_LIFE_S)  # in case this process is killed
                self._run_caller(abort, write_end)
            except ServiceError:
                pass  # the closed pipe reports it
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(write_end)
        seconds, events = 0.0, b""
        try:
            ready, _, _ = select.select([read_end], [], [], PATIENCE_S)
            first = os.read(read_end, _TOOK.size) if ready else b""
            if len(first) == _TOOK.size:
                began = time.monotonic()
                events = os.read(read_end, 1)
                if abort.at_response:
                    while set(events) == set(_SENT):
                        events += os.read(read_end, 1)
                else:
                    time.sleep(abort.moment * _TOOK.unpack(first)[0])
                seconds = time.monotonic() - began
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with open(read_end, "rb") as pipe:
            events += pipe.read()
        in_flight = events.count(_SENT) - events.count(_ANSWERED) - events.count(_FAILED)
        if len(first) != _TOOK.size or _FAILED in events:
            how, detail = REFUSED, "no response"
        else:
            how, detail = (ABORTED if in_flight else ANSWERED), ""
        return Outcome(abort.protocol, abort.kind, how, seconds, in_flight, detail)

    def _run_caller(self, abort: Abort, pipe: int) -> None:
        """Run a caller. It reports to `pipe`: the duration of its first call, then the start and the end of each call."""
        transport = transport_to(self.url)
        images = self.pool[choose_rows(self.seed, 1, abort.number, len(self.pool), abort.batch)]
        outputs = [OutputRequest(name) for name in abort.outputs or OUTPUTS]
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
