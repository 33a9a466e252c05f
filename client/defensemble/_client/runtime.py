"""What the coroutines of the clients need from their surroundings, and its blocking form: threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from .._coroutines import run_blocking

_Result = TypeVar("_Result")


class Runtime(Protocol):
    """Waiting, and running several coroutines at the same time."""

    async def call(self, operation: Callable[[float], Any], timeout_s: float, is_async: bool) -> Any:
        """Run an operation of a transport.

        Args:
            operation: The operation; its argument is the timeout.
            timeout_s: Its timeout in seconds.
            is_async: Whether it returns an awaitable.
        """

    async def run(self, function: Callable[[], _Result]) -> _Result:
        """Run a function that takes long, without blocking others."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Any:
        """Run a coroutine at the same time as the caller. Returns its handle."""

    async def result(self, handle: Any) -> Any:
        """Return the result of a started coroutine, or raise its error."""

    def cancel(self, handle: Any) -> None:
        """Stop a started coroutine if the runtime can; its result is not needed any more."""


class BlockingRuntime(Runtime):
    """Runs coroutines that never suspend, each started one in a thread of its own.

    The threads are daemons: neither an interrupted call nor the end of the interpreter waits for them.
    """

    async def call(self, operation: Callable[[float], Any], timeout_s: float, is_async: bool) -> Any:
        return operation(timeout_s)

    async def run(self, function: Callable[[], _Result]) -> _Result:
        return function()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        future: Future[_Result] = Future()
        threading.Thread(target=_run, args=(coroutine, future), name="defensemble", daemon=True).start()
        return future

    async def result(self, handle: Future[_Result]) -> _Result:
        try:
            return handle.result()
        finally:
            del handle  # the traceback of its error would refer to the error

    def cancel(self, handle: Future[Any]) -> None:
        """Do nothing: a thread ends with its request, and `Stop` keeps it from sending another."""


def _run(coroutine: Coroutine[Any, Any, _Result], future: Future[_Result]) -> None:
    try:
        future.set_result(run_blocking(coroutine))
    except BaseException as error:  # raised again in the thread that asks for the result
        future.set_exception(error)
        del future  # the traceback of the error would refer to the error
