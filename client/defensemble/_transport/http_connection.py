"""HTTP/1.1 over keep-alive sockets, as much of it as the KServe protocol needs: one request, one response, one deadline for both.

The sockets never block; how a connection waits for one is the only difference between the blocking and the asynchronous transport.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .address import Address
from .http_parser import RECEIVE_BYTES, HttpResponse, ResponseReader, request_parts
from .socket_waits import READABLE, WRITABLE, SocketWaits


class ConnectError(Exception):
    """No connection could be made. The cause is an `OSError`."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class HttpPool:
    """Connections to one server. Each serves one call at a time and is kept for the next; a forked child makes its own.

    Args:
        address: The server.
        context: The TLS context; None for plain HTTP.
        waits: How to wait for a socket.

    Example:
        >>> pool = HttpPool(address_from_url("http://localhost:8000"), None, BlockingWaits())
        >>> run_blocking(pool.exchange("GET", "/v2/health/live", "", [], time.monotonic() + 5)).status
        200
    """

    def __init__(self, address: Address, context: ssl.SSLContext | None, waits: SocketWaits) -> None:
        self._address = address
        self._context = context
        self._waits = waits
        self._host_line = f"Host: {address.netloc}\r\n"
        self._idle: deque[_Connection] = deque()  # its append and pop are atomic
        self._process = os.getpid()
        self._is_closed = False
        weakref.finalize(self, _close_all, self._idle)

    async def exchange(self, method: str, target: str, headers: str, body: Sequence[bytes | memoryview], deadline: float) -> HttpResponse:
        """Send a request and read its response. Nothing is sent twice.

        Args:
            method: The method, but not HEAD.
            target: The path, percent-encoded.
            headers: Header lines, each with its CRLF.
            body: The parts of the body.
            deadline: The deadline of all, connecting included.

        Raises:
            ConnectError: No connection could be made.
            OSError: The connection was lost; `TimeoutError` after the deadline.
            ProtocolError: The response is not HTTP/1.1.
        """
        parts = request_parts(method, target, self._host_line + headers, body)
        connection = self._pop_usable()
        if connection is None:
            try:
                connected = await open_socket(self._waits, self._address, self._context, deadline)
            except OSError as error:
                raise ConnectError(error) from error
            connection = _Connection(connected, self._waits)
        is_reusable = False
        try:
            response, is_reusable = await connection.exchange(parts, deadline)
            is_reusable = is_reusable and response.status != 500  # after which uvicorn, of KServe and MLServer, closes the connection
        finally:
            if is_reusable:
                self._idle.append(connection)
                if self._is_closed:
                    _close_all(self._idle)
            else:
                connection.close()
        return response

    def close(self) -> None:
        """Close the idle connections. A connection in use is closed after its response."""
        self._is_closed = True
        _close_all(self._idle)

    def _pop_usable(self) -> _Connection | None:
        if self._process != os.getpid():
            # Two processes on one socket would read each other's responses. Closing the child's copies does not end the connections.
            _close_all(self._idle)
            self._process = os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable():
                return connection
            connection.close()


def _close_all(connections: deque[_Connection]) -> None:
    while True:
        try:
            connections.pop().close()
        except IndexError:
            return


class _Connection:
    def __init__(self, connected: socket.socket, waits: SocketWaits) -> None:
        self._socket = connected
        self._waits = waits
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._scratch = memoryview(bytearray(RECEIVE_BYTES))

    def is_usable(self) -> bool:
        # A server sends nothing on an idle connection: if there is something to read, it is the end of the connection.
        return not self._poll.poll(0)

    def close(self) -> None:
        self._socket.close()

    async def exchange(self, parts: Sequence[bytes | memoryview], deadline: float) -> tuple[HttpResponse, bool]:
        """Return the response, and whether the connection can serve another request."""
        is_sent = False
        # The server may have responded before it read the whole request, as proxies do if it is too large; or TLS has the reason.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            await self._send(parts, deadline)
            is_sent = True
        response, is_reusable = await self._receive(deadline)
        return response, is_reusable and is_sent

    async def _send(self, parts: Sequence[bytes | memoryview], deadline: float) -> None:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[await _retry(self._waits, self._socket, self._socket.send, left, WRITABLE, deadline) :]

    async def _receive(self, deadline: float) -> tuple[HttpResponse, bool]:
        reader = ResponseReader(self._scratch)  # now, while the server works, and not when its response is there: 35 us of a call
        await self._waits.wait(self._socket, READABLE, deadline)  # to receive before would fail, and cost 10 us
        while not reader.is_complete:
            reader.received(await _retry(self._waits, self._socket, self._socket.recv_into, reader.buffer(), READABLE, deadline))
        response = reader.response()
        # What TLS has decrypted and nobody asked for would be read as the next response.
        has_more = isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0
        # After an error of its own, a server may close the connection a moment later without having announced it, as uvicorn does.
        return response, reader.is_reusable and not has_more and response.status < 500


class _Socket(socket.socket):
    """A socket that is closed when it is collected, without a warning.

    If an event loop is closed during a call, only the garbage collector ends the call, and it may finalise the socket before the coroutine
    that would close it.
    """

    def __del__(self) -> None:
        self.close()


async def open_socket(waits: SocketWaits, address: Address, context: ssl.SSLContext | None, deadline: float) -> socket.socket:
    """Return a connected socket that does not block, with TLS if there is a context.

    Args:
        waits: How to wait for the connection.
        address: The server.
        context: The TLS context; None for none.
        deadline: The deadline, of the clock `time.monotonic`.

    Raises:
        OSError: No connection could be made; `TimeoutError` after the deadline.
    """
    connected = await _connect_to_first(waits, address, deadline)
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            # On success, the new socket owns the descriptor of the old one; closing the old one is harmless.
            connected = context.wrap_socket(connected, server_hostname=address.host, do_handshake_on_connect=False)
            await _retry(waits, connected, connected.do_handshake, None, READABLE, deadline)
    except BaseException:
        connected.close()
        raise
    return connected


async def _retry(
    waits: SocketWaits, connected: socket.socket, operation: Callable[..., Any], data: memoryview | None, event: int, deadline: float
) -> Any:
    """Return the result of an operation of a socket that does not block, as soon as it has one."""
    arguments = () if data is None else (data,)
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
        try:
            return operation(*arguments)
        except BlockingIOError:
            wanted = event
        except ssl.SSLWantReadError:
            wanted = READABLE
        except ssl.SSLWantWriteError:
            wanted = WRITABLE
        await waits.wait(connected, wanted, deadline)


async def _connect_to_first(waits: SocketWaits, address: Address, deadline: float) -> socket.socket:
    """Connect to the first address of the host that accepts; each gets an even share of the time that is left."""
    candidates = await waits.lookup(address.host, address.port, deadline)
    last_error: OSError | None = None
    for tried, (family, kind, protocol, _, place) in enumerate(candidates):
        now = time.monotonic()
        if now >= deadline:
            break
        opened = _Socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            await _connect_one(waits, opened, place, now + (deadline - now) / (len(candidates) - tried))
            return opened
        except OSError as error:
            opened.close()
            last_error = error
        except BaseException:
            opened.close()
            raise
    try:
        raise last_error or TimeoutError("timed out")
    finally:
        del last_error  # the error's traceback would refer to the error, and keep the request in memory


async def _connect_one(waits: SocketWaits, opened: socket.socket, place: object, deadline: float) -> None:
    number = opened.connect_ex(place)  # type: ignore[arg-type]
    if number == errno.EINPROGRESS:
        await waits.wait(opened, WRITABLE, deadline)
        number = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))  # of the class that belongs to the number
