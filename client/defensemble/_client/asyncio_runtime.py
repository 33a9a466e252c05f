"""The surroundings of the asynchronous client: the tasks of the running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .runtime import Runtime

_Result = TypeVar("_Result")


class AsyncioRuntime(Runtime):
    """Runs coroutines as tasks of the running event loop. Operations of blocking transports run in threads."""

    async def call(self, operation: Callable[[float], Any], timeout_s: float, is_async: bool) -> Any:
        return await (operation(timeout_s) if is_async else asyncio.to_thread(operation, timeout_s))

    async def run(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.to_thread(function)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        return asyncio.get_running_loop().create_task(coroutine)

    async def result(self, handle: asyncio.Task[_Result]) -> _Result:
        return await handle

    def cancel(self, handle: asyncio.Task[Any]) -> None:
        if not handle.get_loop().is_closed():  # with which it ended
            handle.cancel()
            handle.add_done_callback(_ignore_error)


def _ignore_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # otherwise asyncio reports that nobody asked for it
