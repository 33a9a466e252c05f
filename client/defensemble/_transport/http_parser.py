"""HTTP/1.1 without I/O: a request as bytes, and a response from what a connection receives. httptools (llhttp) is the parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httptools
import numpy as np

RECEIVE_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 16  # of the heads, and between two parts of the body
_MAX_BODY_BYTES = 1 << 31  # the limit of gRPC messages, too; a larger length is a server's error and must not cost memory here
_JOIN_BYTES = 1 << 16  # up to this size, one send of a joined copy is cheaper than several sends


class ProtocolError(Exception):
    """The response is not HTTP/1.1 that this package supports."""


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response. Header names are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: memoryview


def request_parts(method: str, target: str, headers: str, body: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return a request as parts to send, of which small neighbours are joined.

    Args:
        method: The method, but not HEAD, whose response has a length and no body.
        target: The path, percent-encoded.
        headers: Header lines, `Host` among them, each with its CRLF.
        body: The parts of the body.
    """
    length = sum(len(part) for part in body)
    parts: list[bytes | memoryview] = [f"{method} {target} HTTP/1.1\r\nContent-Length: {length}\r\n{headers}\r\n".encode("latin-1")]
    for part in body:
        if len(parts[-1]) + len(part) <= _JOIN_BYTES:
            parts[-1] = b"".join((parts[-1], part))
        else:
            parts.append(part)
    return parts


class ResponseReader:
    """Assembles one response. A body of known length that does not come with its head is received in place, past the parser.

    Args:
        scratch: Memory to receive into, in use until the response is complete.

    Attributes:
        is_complete: Whether the response is complete.
        is_reusable: Whether the connection can serve another request after it.

    Example:
        >>> reader = ResponseReader(memoryview(bytearray(RECEIVE_BYTES)))
        >>> while not reader.is_complete:
        ...     reader.received(connection.recv_into(reader.buffer()))
        >>> reader.response().status
        200
    """

    def __init__(self, scratch: memoryview) -> None:
        self.is_complete = False
        self.is_reusable = False
        self._scratch = scratch
        self._status = 0  # until the head of the response is complete; the heads of interim responses do not count
        self._version = ""
        self._headers: dict[bytes, bytes] = {}
        self._framing_bytes = 0
        self._length: int | None = None
        self._ends_with_connection = False
        self._position = 0  # number of bytes received of the body
        self._content: memoryview | None = None
        self._body = memoryview(b"")
        # The parser's callbacks on_header and on_body; these run no Python code.
        self._lines: dict[bytes, bytes] = {}
        self._parts = bytearray()  # not a list: a server may send millions of chunks of a few bytes
        self.on_header = self._lines.__setitem__
        self.on_body = self._parts.extend
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def buffer(self) -> memoryview:
        """Return where to receive the next bytes. It is never empty."""
        return self._scratch if self._content is None else self._content[self._position :]

    def received(self, count: int) -> None:
        """Process the first `count` bytes of `buffer()`; 0 is the end of the connection.

        Raises:
            ConnectionResetError: The connection ended before the response did.
            ProtocolError: The response is not HTTP/1.1, or is too large.
        """
        if count == 0:
            self._end()
        elif self._content is None:
            self._parse(self._scratch[:count])
        else:
            self._position += count
            if self._position == self._length:
                self._complete(self._content.toreadonly())

    def response(self) -> HttpResponse:
        """Return the complete response."""
        return HttpResponse(self._status, self._headers, self._body)

    def _end(self) -> None:
        if not self._ends_with_connection:
            received = "" if self._length is None else f", after {self._position} of the {self._length} bytes of its body"
            raise ConnectionResetError(f"the server closed the connection before its response was complete{received}")
        self._complete(memoryview(bytes(self._parts)))

    def _complete(self, body: memoryview) -> None:
        self.is_complete = True
        self._body = body
        self._parser = None  # it refers to this object: without this, the body would stay in memory until a garbage collection

    def _parse(self, data: memoryview) -> None:
        assert self._parser is not None, "nothing is received after the response"
        is_head = not self._status
        count = len(self._parts)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise (error.__context__ or error) from None  # KeyboardInterrupt, for example
        except httptools.HttpParserUpgrade:
            self.is_reusable = False  # status 101
        except httptools.HttpParserError as error:
            if not self.is_complete:
                raise ProtocolError(f"{error}{'' if self._status else _describe_start(data)}") from error
            self.is_reusable = False  # there is more than the response
        if is_head and self._status:
            self._check_head()
        if self.is_complete:
            return
        received = len(self._parts) - count
        self._position += received
        self._framing_bytes = 0 if received else self._framing_bytes + len(data)
        if self._framing_bytes > _MAX_HEAD_BYTES:
            what = "has a chunk or trailers" if self._status else f"starts with {bytes(data[:40])!r} and has a head"
            raise ProtocolError(f"the response {what} of more than {_MAX_HEAD_BYTES} bytes")
        _check_length(self._position)
        if self._length is not None:
            try:
                # Unlike a bytearray, not filled with zeros: a length that is announced and not sent costs neither memory nor time.
                self._content = np.empty(self._length, np.uint8).data
            except MemoryError as error:
                raise ProtocolError(f"a response of {self._length} bytes, which does not fit into the free memory") from error
            self._content[: self._position] = self._parts

    def _check_head(self) -> None:
        if self._version not in ("1.1", "1.0"):
            raise ProtocolError(f"the response starts with HTTP/{self._version}; expected HTTP/1.1")
        if self._status == 101:
            raise ProtocolError("the server switches to another protocol, which the request did not ask for")
        if self._status in (204, 304):
            return  # without a body, whatever the headers announce
        encoding = self._headers.get(b"transfer-encoding")
        length = self._headers.get(b"content-length")
        if encoding is not None:
            if encoding.lower() != b"chunked":
                raise ProtocolError(f"unknown transfer encoding {encoding[:40]!r}; expected chunked")
        elif length is not None:
            self._length = int(length)  # the parser accepts one number of at most 64 bits only
            _check_length(self._length)
        else:
            self._ends_with_connection = True  # a proxy responds like this for a server that it cannot reach

    # More callbacks of the parser.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.is_reusable = False  # a second response, which nobody asked for

    def on_headers_complete(self) -> None:
        assert self._parser is not None or self.is_complete, "it calls this"
        if self._parser is None or self._status:
            return
        status = self._parser.get_status_code()
        if status >= 200 or status == 101:
            self._status = status
            self._version = self._parser.get_http_version()
            self._headers = {name.lower(): value.rstrip() for name, value in self._lines.items()}
            self.is_reusable = self._parser.should_keep_alive()
        self._lines.clear()

    def on_message_complete(self) -> None:
        if self._status and not self.is_complete:
            self._complete(memoryview(bytes(self._parts)))


def _describe_start(data: memoryview) -> str:
    start = bytes(data[:40])
    return f"; the response starts with {start!r}" + ("" if start.startswith(b"HTTP/") else " (is this the gRPC port?)")


def _check_length(length: int) -> None:
    if length > _MAX_BODY_BYTES:
        raise ProtocolError(f"a response of {length} bytes; expected at most {_MAX_BODY_BYTES}")
