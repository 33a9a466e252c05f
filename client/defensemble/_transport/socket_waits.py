"""How a connection waits for its socket: blocking the thread, or in an event loop (`asyncio_waits.py`)."""

from __future__ import annotations

import select
import socket
import time
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


class BlockingWaits(SocketWaits):
    """Waits that block the thread, so that coroutines over them never suspend."""

    async def lookup(self, host: str, port: int, deadline: float) -> list[tuple[Any, ...]]:
        """Return the addresses of a host. The system's resolver has time limits of its own, and no way to set another."""
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    async def wait(self, connected: socket.socket, event: int, deadline: float) -> None:
        """Wait until a socket is readable or writable."""
        poll = select.poll()
        poll.register(connected, event)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or (not poll.poll(min(left_s, _LONGEST_S) * 1000) and left_s < _LONGEST_S):
            raise TimeoutError("timed out")
