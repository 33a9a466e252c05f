"""HTTP/1.1 over kept-alive sockets, as much of it as the KServe protocol needs: one request, one answer, one deadline for both.

Why not a library: of the same tiny call at batch 1, taken in turn on 2 cores, the median was 281 us over a bare socket, 337 through this,
403 where `http.client` reads the answer, 464 through `http.client` alone and 660 through urllib3; tritonclient's own HTTP client may not be
shared by threads. Their timeouts are for each read, so that an answer that trickles would never time out.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .address import Address

_RECV_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16
_MAX_BODY_BYTES = 1 << 31  # what gRPC's messages end at too; a length above it is an error of the server, not a reason to ask for memory
_JOIN_BYTES = 1 << 16  # up to here one send of a joined copy is cheaper than several sends


class ProtocolError(Exception):
    """What came back is not HTTP/1.1 that can be read here."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: memoryview


class HttpPool:
    """Connections to one server, each used by one thread at a time and kept for the next request; a forked child makes its own."""

    def __init__(self, address: Address, context: ssl.SSLContext | None) -> None:
        self._address = address
        self._context = context
        self._idle: deque[_Connection] = deque()  # its append and pop are atomic
        self._process = os.getpid()
        self._closed = False

    def exchange(self, method: str, target: str, headers: str, body: Sequence[bytes | memoryview], timeout_s: float) -> Answer:
        """Sends a request and reads its answer, both within the timeout; nothing is sent twice.

        Raises:
            OSError: No connection, or it was lost; TimeoutError where the time was up.
            ProtocolError: The answer is not HTTP/1.1.
        """
        deadline = time.monotonic() + timeout_s
        length = sum(len(part) for part in body)
        head = f"{method} {target} HTTP/1.1\r\nHost: {self._address.netloc}\r\nContent-Length: {length}\r\n{headers}\r\n".encode("latin-1")
        connection = self._connection(deadline)
        reusable = False
        try:
            try:
                connection.send([head, *body], deadline)
            except (BrokenPipeError, ConnectionResetError) as error:
                answer = connection.answer_before_the_end(deadline, error)
            else:
                answer, reusable = connection.receive(deadline)
        finally:
            if reusable and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    def close(self) -> None:
        """Closes the idle connections; one that is in use is closed after its answer."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _connection(self, deadline: float) -> _Connection:
        if self._process != os.getpid():
            # Two processes on one socket would read each other's answers. Letting go of them closes our copies, and ends nothing.
            self._idle = deque()
            self._process = os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _Connection(self._address, self._context, deadline)
            if connection.usable():
                return connection
            connection.close()


class _Connection:
    def __init__(self, address: Address, context: ssl.SSLContext | None, deadline: float) -> None:
        self._socket = _connected(address, deadline)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                self._limit(deadline)
                self._socket = context.wrap_socket(self._socket, server_hostname=address.host)
        except BaseException:
            self._socket.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._buffer = b""

    def usable(self) -> bool:
        # An idle connection has nothing to say: what can be read is the end of it.
        return not self._poll.poll(0)

    def close(self) -> None:
        self._socket.close()

    def send(self, parts: list[bytes | memoryview], deadline: float) -> None:
        self._limit(deadline)
        if sum(len(part) for part in parts) <= _JOIN_BYTES:
            self._socket.sendall(b"".join(parts))
            return
        for part in parts:
            self._limit(deadline)
            self._socket.sendall(part)

    def receive(self, deadline: float) -> tuple[Answer, bool]:
        """The answer, and whether the connection can take another request."""
        while True:
            status, version, headers = self._head(deadline)
            if status >= 200 or status == 101:
                break  # the others are interim answers
        closes = version != b"HTTP/1.1" or b"close" in [one.strip() for one in headers.get(b"connection", b"").lower().split(b",")]
        if status in (204, 304):
            body = memoryview(b"")
        elif b"transfer-encoding" in headers:
            if headers[b"transfer-encoding"].lower() != b"chunked":
                raise ProtocolError(f"unknown transfer encoding {headers[b'transfer-encoding']!r}")
            body = self._chunks(deadline)
        elif b"content-length" in headers:
            body = self._exactly(_length(headers[b"content-length"]), deadline)
        elif closes:
            body = self._to_the_end(deadline)  # as proxies answer for a server that they cannot reach
        else:
            raise ProtocolError("an answer with neither Content-Length nor chunks")
        return Answer(status, headers, body), not closes and not self._buffer

    def answer_before_the_end(self, deadline: float, error: OSError) -> Answer:
        """The answer of a server that closed the connection before it had the whole request, as proxies do of one that is too large."""
        try:
            return self.receive(deadline)[0]
        except (OSError, ProtocolError):
            raise error from None

    def _head(self, deadline: float) -> tuple[int, bytes, dict[bytes, bytes]]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES or (len(self._buffer) >= 5 and not self._buffer.startswith(b"HTTP/")):
                raise ProtocolError(f"its answer begins with {self._buffer[:40]!r} (is this its gRPC port?)")
            self._fill(deadline)
        first, *lines = self._buffer[:end].split(b"\r\n")
        self._buffer = self._buffer[end + 4 :]
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise ProtocolError(f"its answer begins with {first[:40]!r} (is this its gRPC port?)")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        return int(rest[:3]), version, headers

    def _fill(self, deadline: float) -> None:
        self._limit(deadline)
        received = self._socket.recv(_RECV_BYTES)
        if not received:
            raise ConnectionResetError("the server closed the connection before its answer was complete")
        self._buffer += received

    def _exactly(self, length: int, deadline: float) -> memoryview:
        at = min(length, len(self._buffer))
        if at == length:
            body = memoryview(self._buffer)[:length]
            self._buffer = self._buffer[length:]
            return body
        try:
            whole = memoryview(bytearray(length))
        except MemoryError as error:
            raise ProtocolError(f"an answer of {length} bytes, for which there is no memory here") from error
        whole[:at] = self._buffer
        self._buffer = b""
        while at < length:
            self._limit(deadline)
            count = self._socket.recv_into(whole[at:])
            if not count:
                raise ConnectionResetError(f"the server closed the connection after {at} of its answer's {length} bytes")
            at += count
        return whole.toreadonly()

    def _chunks(self, deadline: float) -> memoryview:
        parts: list[memoryview] = []
        total = 0
        while True:
            size = _length(self._line(deadline).split(b";")[0], 16)
            total += size
            _check_length(total)
            if size == 0:
                while self._line(deadline):
                    pass  # trailers, of which none is needed
                return memoryview(b"".join(parts))
            parts.append(self._exactly(size, deadline))
            if self._line(deadline):
                raise ProtocolError("a chunk that is longer than it says")

    def _to_the_end(self, deadline: float) -> memoryview:
        parts, total = [self._buffer], len(self._buffer)
        self._buffer = b""
        while True:
            self._limit(deadline)
            received = self._socket.recv(_RECV_BYTES)
            if not received:
                return memoryview(b"".join(parts))
            parts.append(received)
            total += len(received)
            _check_length(total)

    def _line(self, deadline: float) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise ProtocolError("a line without an end")
            self._fill(deadline)
        line = self._buffer[:end]
        self._buffer = self._buffer[end + 2 :]
        return line

    def _limit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time was up")
        self._socket.settimeout(left)


def _connected(address: Address, deadline: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one; each gets an even share of the time that is left."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    last: OSError | None = None
    for tried, (family, kind, protocol, _, place) in enumerate(found):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        opened = socket.socket(family, kind, protocol)
        try:
            opened.settimeout(left / (len(found) - tried))
            opened.connect(place)
            return opened
        except OSError as error:
            opened.close()
            last = error
        except BaseException:
            opened.close()
            raise
    raise last or TimeoutError("the time was up")


def _length(text: bytes, base: int = 10) -> int:
    try:
        length = int(text.strip(), base)
    except ValueError as error:
        raise ProtocolError(f"the length {text[:40]!r} is not a number") from error
    if length < 0:
        raise ProtocolError(f"the length {text[:40]!r} is negative")
    _check_length(length)
    return length


def _check_length(length: int) -> None:
    if length > _MAX_BODY_BYTES:
        raise ProtocolError(f"an answer of {length} bytes, expected at most {_MAX_BODY_BYTES}")
