"""An interrupt (SIGINT) that comes while files change places: it waits until nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class HeldInterrupts:
    """Notes an interrupt in the place of the handler that was there."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.came = False
        self.done = False
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Be the handler."""
        self.came = True

    def deliver(self) -> None:
        """Hand an interrupt that came to the handler that was there, which usually raises KeyboardInterrupt: where all can be undone."""
        if self.came:
            self.came = False
            self._before(signal.SIGINT, None)

    def too_late(self) -> None:
        """Say that the work is done: a KeyboardInterrupt would from here on report as broken off what has taken effect."""
        self.done = True

    def end(self) -> None:
        """Deliver what came, unless Python's own handler would raise for what is done."""
        if not (self.done and self._before is signal.default_int_handler):
            self.deliver()


@contextmanager
def interrupts_held() -> Iterator[HeldInterrupts]:
    """Let interrupts wait until the end of the block, or until ``deliver`` is called.

    Only the main thread is ever interrupted; in others, and where the program has no handler of Python's, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield HeldInterrupts(signal.default_int_handler)
        return
    held = HeldInterrupts(before)
    signal.signal(signal.SIGINT, held)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
        held.end()


@contextmanager
def never_too_late() -> Iterator[None]:
    """Let an interrupt be raised also where ``interrupts_held`` holds work that is done: for whoever undoes the whole of several such."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raising(number: int, frame: FrameType | None) -> None:
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, raising)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
