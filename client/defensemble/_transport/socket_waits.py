"""How a connection waits for its socket: blocking the thread, or in an event loop (`asyncio_waits.py`)."""

from __future__ import annotations

import select
import socket
import threading
import time
from concurrent import futures
from typing import Any, Protocol

READABLE, WRITABLE = select.POLLIN, select.POLLOUT
_LONGEST_S = 86_400.0  # poll takes at most 24 days


class SocketWaits(Protocol):
    """Waits of connections that do not block. The deadlines are of the clock `time.monotonic`."""

    async def lookup(self, host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
        """Return the addresses of a host, as `socket.getaddrinfo`.

        Args:
            host: The host.
            port: The port.
            deadline: The deadline.
        """

    async def wait(self, connected: socket.socket, event: int, deadline: float) -> None:
        """Wait until a socket is readable or writable. It may return early.

        Args:
            connected: The socket.
            event: `READABLE` or `WRITABLE`.
            deadline: The deadline.

        Raises:
            TimeoutError: The deadline passed.
        """


def start_lookup(host: str, port: int) -> futures.Future[list[tuple[Any, ...]]]:
    """Look up the addresses of a host as `socket.getaddrinfo`: a name in a thread, as the resolver has time limits of its own.

    The thread is a daemon: neither a call that timed out nor the end of the interpreter waits for it.

    Args:
        host: The host.
        port: The port.
    """
    found: futures.Future[list[tuple[Any, ...]]] = futures.Future()
    found.set_running_or_notify_cancel()  # it cannot be cancelled
    try:
        found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        threading.Thread(target=_look_up, args=(host, port, found), name="defensemble-lookup", daemon=True).start()
    return found


def _look_up(host: str, port: int, found: futures.Future[list[tuple[Any, ...]]]) -> None:
    try:
        found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except Exception as error:  # raised in the thread that asks for the result
        found.set_exception(error)


class BlockingWaits(SocketWaits):
    """Waits that block the thread, so that coroutines over them never suspend."""

    async def lookup(self, host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
        """Return the addresses of a host."""
        try:
            return start_lookup(host, port).result(deadline - time.monotonic())
        except futures.TimeoutError as error:  # no OSError in Python 3.10
            raise TimeoutError("timed out") from error

    async def wait(self, connected: socket.socket, event: int, deadline: float) -> None:
        """Wait until a socket is readable or writable."""
        poll = select.poll()
        poll.register(connected, event)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or (not poll.poll(min(left_s, _LONGEST_S) * 1000) and left_s < _LONGEST_S):
            raise TimeoutError("timed out")
