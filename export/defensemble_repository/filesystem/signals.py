"""Defer an interrupt (SIGINT) that comes while files change until nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def _raises_keyboard_interrupt(handler: object) -> bool:
    """Return whether a handler of SIGINT is Python's own, or the command line's, which does the same."""
    return handler is signal.default_int_handler or getattr(handler, "raises_keyboard_interrupt", False)


class DeferredSigint:
    """A handler that notes an interrupt, and passes it on later to the handler that it replaces."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.came = False
        self.committed = False
        self._before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Be the handler."""
        self.came = True

    def deliver(self) -> None:
        """Pass an interrupt that came to the earlier handler, which usually raises KeyboardInterrupt: call it where all can be undone."""
        if self.came:
            self.came = False
            self._before(signal.SIGINT, None)

    def mark_committed(self) -> None:
        """Note that the work has taken effect: a KeyboardInterrupt would report it as cancelled."""
        self.committed = True

    def end(self) -> None:
        """Deliver what came, unless Python's own handler would raise for work that is committed."""
        if not (self.committed and _raises_keyboard_interrupt(self._before)):
            self.deliver()


@contextmanager
def defer_sigint() -> Iterator[DeferredSigint]:
    """Defer interrupts until the end of the block, or until `deliver` is called.

    Python interrupts the main thread only; in others, and where the program has no handler of Python's, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield DeferredSigint(signal.default_int_handler)
        return
    deferred = DeferredSigint(before)
    signal.signal(signal.SIGINT, deferred)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGINT, before)
        deferred.end()


@contextmanager
def sigint_raises() -> Iterator[None]:
    """Raise an interrupt also where `defer_sigint` holds committed work: for a caller that undoes several such steps together."""
    before = signal.getsignal(signal.SIGINT)
    if not _raises_keyboard_interrupt(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raising(number: int, frame: FrameType | None) -> None:
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, raising)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
