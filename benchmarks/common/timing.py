"""Measure the throughput of a form with concurrent callers, each of which calls again as soon as it has a response."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
Call = tuple[float, float]
"""Start and end of a call, in seconds of one clock."""
LATE_S = 1e-3


@dataclass(frozen=True)
class CallSetting:
    """A number of callers that call again at once, and a batch size.

    Attributes:
        callers: Number of callers.
        batch: Images per call.
    """

    callers: int
    batch: int

    @property
    def key(self) -> str:
        """Name in results and in names of figures."""
        return f"{self.callers}_caller{'s' if self.callers > 1 else ''}_batch_{self.batch}"

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.callers} x {self.batch}"


@dataclass(frozen=True)
class Timing:
    """Images per second in the time window, and the durations of the calls that ended in it."""

    images_per_s: float
    calls_ms: tuple[float, ...]


def calls_in_window(calls: Sequence[Call], begin: float, end: float) -> float:
    """Return the number of calls in [begin, end), each counted by the fraction of its duration in it.

    A server that batches requests responds in bursts: counting whole calls would be up to 8 % wrong for a window of 12 bursts.
    """
    return sum(max(0.0, min(ended, end) - max(began, begin)) / (ended - began) for began, ended in calls)


def time_form(predict: Predict, images: NDArray[np.float32], *, warm_s: float, seconds: float) -> Timing:
    """Time `predict` with `len(images)` callers, each a thread with its own batch.

    All callers continue until every call that was running at the end of the window has returned, so that none has the machine to itself.

    Args:
        predict: The function to time.
        images: (callers, N, C, H, W).
        warm_s: Seconds before the window starts.
        seconds: Length of the window.

    Raises:
        Exception: Whatever `predict` raised in a caller; the other callers stop.
    """
    callers = len(images)
    done = threading.Event()
    ready = threading.Barrier(callers + 1)
    unfinished = [callers]
    lock = threading.Lock()
    calls: list[list[Call]] = [[] for _ in range(callers)]
    failures: list[Exception] = []
    window = [0.0, 0.0]

    def mark_finished() -> None:
        with lock:
            unfinished[0] -= 1
            if unfinished[0] == 0:
                done.set()

    def call(index: int) -> None:
        own_calls, batch, counted = calls[index], images[index], False
        ready.wait()
        began = time.perf_counter()
        try:
            while not done.is_set():
                predict(batch)
                now = time.perf_counter()
                own_calls.append((began, now))
                began = now
                if now >= window[1] and not counted:
                    counted = True
                    mark_finished()
        except Exception as error:
            failures.append(error)
            done.set()

    threads = [threading.Thread(target=call, args=(index,), name=f"caller-{index}") for index in range(callers)]
    for thread in threads:
        thread.start()
    window[0] = time.perf_counter() + warm_s
    window[1] = window[0] + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    count = sum(calls_in_window(own_calls, *window) for own_calls in calls)
    durations_ms = [1000 * (end - begin) for own_calls in calls for begin, end in own_calls if window[0] <= end < window[1]]
    return Timing(count * images.shape[1] / seconds, tuple(durations_ms))


@dataclass(frozen=True)
class OpenLoop:
    """Calls per second that returned, and the time of each from its intended start to its end.

    `late_share` is the share of the calls that were sent more than 1 ms late although a caller was free: by the callers' own fault.
    """

    calls_per_s: float
    calls_ms: tuple[float, ...]
    late_share: float


def time_open_loop(predict: Predict, images: NDArray[np.float32], arrivals: NDArray[np.float64], *, warm_s: float) -> OpenLoop:
    """Call `predict` at given times with `len(images)` callers, each a thread with its own batch.

    An arrival waits while all callers are busy, and its time counts from the arrival, so that a slow server cannot hide. All arrivals are
    called, also by a server that falls behind.

    Args:
        predict: The function to time.
        images: (callers, N, C, H, W).
        arrivals: Seconds from the start at which calls should start, ascending.
        warm_s: Arrivals before this are not counted.

    Raises:
        Exception: Whatever `predict` raised in a caller; the other callers stop.
    """
    calls: list[tuple[Call, bool]] = []
    failures: list[Exception] = []
    numbers = itertools.count()
    began = time.perf_counter() + 0.01

    def call(batch: NDArray[np.float32]) -> None:
        try:
            while (number := next(numbers)) < len(arrivals) and not failures:
                intended = began + float(arrivals[number])
                due = max(intended, time.perf_counter())
                time.sleep(max(0.0, due - time.perf_counter()))
                is_late = time.perf_counter() - due > LATE_S
                predict(batch)
                calls.append(((intended, time.perf_counter()), is_late))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(batch,), name=f"caller-{index}") for index, batch in enumerate(images)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    counted = [(call, is_late) for call, is_late in calls if call[0] >= began + warm_s]
    last = max((ended for (_, ended), _ in counted), default=began + warm_s)
    rate = len(counted) / (last - began - warm_s) if counted else 0.0
    late_share = sum(is_late for _, is_late in counted) / len(counted) if counted else 0.0
    return OpenLoop(rate, tuple(1000 * (ended - intended) for (intended, ended), _ in counted), late_share)
