"""Questions that several threads have at the same time, asked once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class _InterruptedError(Exception):
    """The thread that was asking was stopped, which says nothing of the answer."""


class Asking(Generic[T]):
    """What is being asked just now, by name: whoever asks the same meanwhile gets that very answer, or its error.

    There is no lock: different questions never wait for each other, and a child that is forked meanwhile inherits no locked one.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[int, str], Future[T]] = {}

    def ask(self, name: str, question: Callable[[], T], timeout_s: float) -> T:
        """The answer to a question: asked here, or awaited, for `timeout_s` at most, from the thread that is asking it.

        Raises:
            TimeoutError: Another thread is asking, and has no answer in time; else whatever the question raises.
        """
        key = (os.getpid(), name)  # the thread that was asking is not in a forked child
        deadline = time.monotonic() + timeout_s
        while True:
            mine: Future[T] = Future()
            running = self._running.setdefault(key, mine)  # atomic
            if running is mine:
                return self._ask(key, mine, question)
            wait([running], deadline - time.monotonic())
            if not running.done():
                raise TimeoutError(f"another thread has been asking the same for {timeout_s:g} s")
            if not isinstance(running.exception(), _InterruptedError):
                return running.result()

    def _ask(self, key: tuple[int, str], mine: Future[T], question: Callable[[], T]) -> T:
        try:
            answer = question()
        except BaseException as error:
            mine.set_exception(error if isinstance(error, Exception) else _InterruptedError())
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            del self._running[key]
