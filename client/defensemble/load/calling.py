"""The calls of one process in one phase of a test: threads that wait for their time, call, and note what happened."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._client.model_info import ModelInfo
from .._client.prediction import non_finite_values, response_mismatch
from .._exceptions import ServerFailedError, ServiceError
from .._transport.base import ConnectionOptions, OutputRequest, Transport
from .._transport.factory import transport_from_url
from .result import ClientCounters

LATE_S = 0.001
"""A call that is sent later than this, although a slot was free, missed its schedule."""
UNSENT = "unsent"
_STRIDE = 7919  # between the first calls of two callers, so that they send other images and batch sizes
PAUSE_AFTER_FAILURE_S = 0.05  # else callers of a closed loop would call a dead server ten thousand times a second


class CallRecord(NamedTuple):
    """A call. Times are those of the monotonic clock, which all processes of a machine share.

    Attributes:
        intended: When it should be sent; in a closed loop, when it was sent.
        ended: When its answer or failure came.
        late_s: How late it was sent by the generator's own fault.
        images: Number of images.
        failure: Class of the error, or `UNSENT`; None if it was answered.
    """

    intended: float
    ended: float
    late_s: float
    images: int
    failure: str | None


@dataclass(frozen=True, eq=False)
class TargetSpec:
    """What is called: pickled into each process.

    Attributes:
        url: The server's URL.
        options: How to connect.
        info: The model.
        outputs: The outputs to request.
        images: The images, more than the largest batch has; calls send slices of them.
        timeout_s: Timeout of a call.
    """

    url: str
    options: ConnectionOptions
    info: ModelInfo
    outputs: tuple[OutputRequest, ...]
    images: NDArray[np.float32]
    timeout_s: float


class Caller:
    """Makes single calls. Thread-safe.

    Args:
        spec: What is called.
        transport: Access to the server; None to connect to the URL.
    """

    def __init__(self, spec: TargetSpec, transport: Transport | None = None) -> None:
        self._spec = spec
        self._transport = transport_from_url(spec.url, spec.options) if transport is None else transport
        self._counted = np.zeros(3, np.int64)  # requests, failures, images
        self._counting = threading.Lock()

    def call(self, first: int, count: int) -> tuple[float, str | None]:
        """Send some images. Returns when the call ended, and the class of the error, None if it was answered.

        Args:
            first: A number that chooses the images.
            count: Number of images.
        """
        spec = self._spec
        start = first % (len(spec.images) - count + 1)
        try:
            inputs = {spec.info.input_name: spec.images[start : start + count]}
            response = self._transport.infer(spec.info.name, inputs, spec.outputs, spec.timeout_s)
        except ServiceError as error:
            self._count(1, 1, 0)
            return time.monotonic(), type(error).__name__
        ended = time.monotonic()
        self._count(1, 0, count)
        is_right = response_mismatch(response, spec.outputs, count, spec.info) is None and non_finite_values(response) is None
        return ended, None if is_right else ServerFailedError.__name__

    def take_counters(self) -> ClientCounters:
        """Return what was counted since the last time, independently of the records."""
        with self._counting:
            requests, failures, images = self._counted.tolist()
            self._counted[:] = 0
        return ClientCounters(requests, failures, images)

    def _count(self, *counts: int) -> None:
        with self._counting:
            self._counted += counts


@dataclass(frozen=True, eq=False)
class ClosedPhase:
    """The part of one process in a phase of a closed loop.

    Attributes:
        starts: When each caller begins, in seconds from the beginning.
        seconds: When they stop.
        sizes: Batch sizes, which each caller uses again and again, from a place of its own on.
    """

    starts: Sequence[float]
    seconds: float
    sizes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OpenPhase:
    """The part of one process in a phase of an open loop.

    Attributes:
        times: When calls are to be sent, in seconds from the beginning, ascending.
        sizes: The batch size of each.
        max_in_flight: Most calls under way.
    """

    times: NDArray[np.float64]
    sizes: NDArray[np.int64]
    max_in_flight: int


class PhaseRun:
    """A running phase. The threads exist before `begin` is called.

    Attributes:
        busy_s: In a closed loop, how long each caller has called, once it has stopped.

    Args:
        caller: Makes the calls.
        phase: What to do.
    """

    def __init__(self, caller: Caller, phase: ClosedPhase | OpenPhase) -> None:
        self._caller = caller
        self._phase = phase
        self._begin = 0.0
        self._may_begin = threading.Event()
        self._stop = threading.Event()
        self._records: deque[CallRecord] = deque()
        self._error: Exception | None = None
        self.busy_s: list[float] = []
        if isinstance(phase, ClosedPhase):
            count, main = len(phase.starts), self._call_closed
        else:
            count, main = min(phase.max_in_flight, len(phase.times)), self._call_open
        self._is_calling = [False] * count
        self._numbers = itertools.count(count)  # of the calls that no thread has taken
        # Daemons: a thread that waits for its time does not keep the process.
        self._threads = [threading.Thread(target=self._run, args=(main, number), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def begin(self, at: float) -> None:
        """Begin at a time of the monotonic clock."""
        self._begin = at
        self._may_begin.set()

    def stop(self) -> None:
        """Make no more calls; those under way end."""
        self._stop.set()
        self._may_begin.set()

    @property
    def is_finished(self) -> bool:
        """Whether no call is under way and none will be made."""
        if self._stop.is_set() and isinstance(self._phase, OpenPhase):  # whose threads wait for times that are long in coming
            return not any(self._is_calling)
        return not any(thread.is_alive() for thread in self._threads)

    def take_records(self) -> list[CallRecord]:
        """Return the calls that ended since the last time, or raise what a caller raised that is no failed call."""
        if self._error is not None:
            raise self._error
        records = []
        while self._records:
            records.append(self._records.popleft())
        return records

    def _run(self, main: Callable[[int], None], number: int) -> None:
        try:
            main(number)
        except Exception as error:
            self._error = error
            self.stop()

    def _call_closed(self, number: int) -> None:
        phase = self._phase
        assert isinstance(phase, ClosedPhase)
        self._may_begin.wait()
        _sleep_until(self._begin + phase.starts[number])
        sizes, end = phase.sizes.tolist(), self._begin + phase.seconds
        call = _STRIDE * number
        while not self._stop.is_set() and (sent := time.monotonic()) < end:
            if self._call(number, call, sent, 0.0, sizes[call % len(sizes)]):
                time.sleep(PAUSE_AFTER_FAILURE_S)
            call += 1
        self.busy_s.append(time.monotonic() - self._begin)

    def _call_open(self, number: int) -> None:
        phase = self._phase
        assert isinstance(phase, OpenPhase)
        self._may_begin.wait()
        # Each thread takes the next call that no other has taken, and waits for its time. A thread that takes one whose time has passed
        # was calling before that, as were all others. The first one is taken before the beginning.
        taken, is_first = number, True
        while not self._stop.is_set() and taken < len(phase.times):
            intended, size = self._begin + float(phase.times[taken]), int(phase.sizes[taken])
            had_free_slot = (now := time.monotonic()) <= intended or is_first
            if not had_free_slot and now - intended > LATE_S:
                self._records.append(CallRecord(intended, now, 0.0, size, UNSENT))
            else:
                _sleep_until(intended)
                self._call(number, taken, intended, time.monotonic() - intended if had_free_slot else 0.0, size)
            taken, is_first = next(self._numbers), False

    def _call(self, thread: int, call: int, intended: float, late_s: float, size: int) -> bool:
        """Call, unless the phase was stopped. Returns whether the call failed."""
        self._is_calling[thread] = True  # first, since `is_finished` reads the two in the other order
        try:
            if self._stop.is_set():
                return False
            ended, failure = self._caller.call(call, size)
            self._records.append(CallRecord(intended, ended, late_s, size, failure))
        finally:
            self._is_calling[thread] = False
        return failure is not None


def _sleep_until(at: float) -> None:
    while (left_s := at - time.monotonic()) > 0:
        time.sleep(left_s)
