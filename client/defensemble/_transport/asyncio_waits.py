"""Waits for sockets in an event loop. A socket that nobody waits for is not known to any loop: the next call may use it in another."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

from .socket_waits import READABLE, SocketWaits, start_lookup


class AsyncioWaits(SocketWaits):
    """Waits in the running event loop."""

    async def lookup(self, host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
        """Return the addresses of a host."""
        found = start_lookup(host, port)
        if found.done():  # an address, not a name
            return found.result()
        looking_up = asyncio.wrap_future(found)
        try:
            # Before Python 3.12, `wait_for` returns a result in spite of a cancellation that comes at the same time.
            await asyncio.wait([looking_up], timeout=deadline - time.monotonic())
            if not looking_up.done():
                raise TimeoutError("timed out")
            return looking_up.result()
        finally:
            looking_up.cancel()  # without effect if it is over; otherwise, its thread would wake a loop that may be closed

    async def wait(self, connected: socket.socket, event: int, deadline: float) -> None:
        """Wait until a socket is readable or writable."""
        loop = asyncio.get_running_loop()
        descriptor = connected.fileno()
        add, remove = (loop.add_reader, loop.remove_reader) if event == READABLE else (loop.add_writer, loop.remove_writer)
        is_ready: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(deadline - time.monotonic(), finish, is_ready, False)
        add(descriptor, finish, is_ready, True)
        try:
            if not await is_ready:
                raise TimeoutError("timed out")
        finally:
            timer.cancel()
            if not loop.is_closed():  # its tasks end when they are collected
                remove(descriptor)


def finish(waiter: asyncio.Future[bool], result: bool) -> None:
    """Give a future its result, unless it has one or was cancelled."""
    if not waiter.done():
        waiter.set_result(result)
