"""Run coroutines without an event loop.

What the blocking and the asynchronous client have in common is written once, as coroutines. The blocking client runs them over
transports that block and never suspend, so that a coroutine is over after its first step.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def run_blocking(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        AssertionError: The coroutine suspended, which is a bug in this package.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: _Result = stop.value
        return result
    coroutine.close()
    raise AssertionError(f"{coroutine!r} suspended: one of its calls does not block")
