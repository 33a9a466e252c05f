"""Defer an interrupt (SIGINT) while files change, until the change is complete or undone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def _raises(handler: object) -> bool:
    """Return whether a handler raises KeyboardInterrupt: Python's own, or one marked so, as that of the `defensemble` script is."""
    return handler is signal.default_int_handler or getattr(handler, "raises_keyboard_interrupt", False)


class DeferredSigint:
    """A signal handler that records an interrupt, and later passes it to the handler that it replaces.

    Example:
        with defer_sigint() as interrupts:
            for step in steps:
                interrupts.deliver()  # Each step can be undone.
                step()
            interrupts.mark_committed()
    """

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self.is_pending = False
        self.is_committed = False
        self._previous = previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Record an interrupt."""
        self.is_pending = True

    def deliver(self) -> None:
        """Forward a recorded interrupt to the previous handler, which usually raises KeyboardInterrupt. The work must be undoable."""
        if self.is_pending:
            self.is_pending = False
            self._previous(signal.SIGINT, None)

    def mark_committed(self) -> None:
        """Record that the work has taken effect, so that a KeyboardInterrupt would wrongly report it as cancelled."""
        self.is_committed = True

    def finish(self) -> None:
        """Deliver a recorded interrupt, unless it would raise KeyboardInterrupt for committed work."""
        if not (self.is_committed and _raises(self._previous)):
            self.deliver()


@contextmanager
def defer_sigint() -> Iterator[DeferredSigint]:
    """Defer interrupts until the end of the block, or until `deliver` is called.

    Python only interrupts the main thread. In other threads, and if the program has no Python handler, this has no effect.
    """
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        yield DeferredSigint(signal.default_int_handler)
        return
    deferred = DeferredSigint(previous)
    signal.signal(signal.SIGINT, deferred)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGINT, previous)
        deferred.finish()


@contextmanager
def sigint_raises() -> Iterator[None]:
    """Raise interrupts even after `mark_committed`, for a caller that can undo several transactions together."""
    previous = signal.getsignal(signal.SIGINT)
    if not _raises(previous) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raising(number: int, frame: FrameType | None) -> None:
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, raising)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
