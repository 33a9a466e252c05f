"""How many images a second a form answers, to callers that each ask again as soon as they have an answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[NDArray[np.float32]], NDArray[np.floating[Any]]]
Call = tuple[float, float]
"""When a call began and when it came back, in seconds of one clock."""


@dataclass(frozen=True)
class Timing:
    """Images a second in the window, and how long the calls took that came back in it."""

    images_per_s: float
    calls_ms: tuple[float, ...]


def calls_in_window(calls: Sequence[Call], begin: float, end: float) -> float:
    """How many calls fall into [begin, end), each counted by the part of its duration that does.

    Answers come in bursts from a server that joins requests: counting whole calls would be up to 8 % wrong for a window of 12 bursts.
    """
    return sum(max(0.0, min(came_back, end) - max(began, begin)) / (came_back - began) for began, came_back in calls)


def time_form(predict: Predict, images: NDArray[np.float32], *, warm_s: float, seconds: float) -> Timing:
    """Times `predict` under `len(images)` callers, each a thread with a batch of its own: images (callers, N, C, H, W).

    The window of `seconds` begins after `warm_s`. All callers go on until each one's call that was running at the end of the window has
    come back, so that none of them has the machine to itself.

    Raises:
        Exception: What `predict` raised in a caller; the others stop.
    """
    callers = len(images)
    done = threading.Event()
    ready = threading.Barrier(callers + 1)
    unfinished = [callers]
    lock = threading.Lock()
    calls: list[list[Call]] = [[] for _ in range(callers)]
    failures: list[Exception] = []
    window = [0.0, 0.0]

    def finished() -> None:
        with lock:
            unfinished[0] -= 1
            if unfinished[0] == 0:
                done.set()

    def call(index: int) -> None:
        own, batch, counted = calls[index], images[index], False
        ready.wait()
        began = time.perf_counter()
        try:
            while not done.is_set():
                predict(batch)
                now = time.perf_counter()
                own.append((began, now))
                began = now
                if now >= window[1] and not counted:
                    counted = True
                    finished()
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
    count = sum(calls_in_window(own, *window) for own in calls)
    took = [1000 * (end - begin) for own in calls for begin, end in own if window[0] <= end < window[1]]
    return Timing(count * images.shape[1] / seconds, tuple(took))
