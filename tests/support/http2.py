"""HTTP/2 as frames, valid or not: just enough to call a method of gRPC and to flood."""

from __future__ import annotations

import select
import socket
import struct
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def field(name: str, value: str) -> bytes:
    """Return a header field as a literal without compression; neither part may be longer than 126 bytes."""
    assert max(len(name), len(value)) < 127
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def call_fields(path: str) -> bytes:
    """Return the header fields of a call of gRPC."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "content-type": "application/grpc", "te": "trailers"}
    return b"".join(field(name, value) for name, value in fields.items())


def connect(port: int) -> socket.socket:
    """Connect to a port of this machine and send the beginning of every connection."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.sendall(PREFACE + frame(SETTINGS))
    return connection


def send_and_drain(connection: socket.socket, sent: bytes) -> None:
    """Send bytes while reading what the server sends, until everything is sent or the server closes the connection."""
    view = memoryview(sent)
    with suppress(ConnectionError):
        while view:
            readable, writable, _ = select.select([connection], [connection], [], 10)
            assert readable or writable, "the server neither reads nor sends"
            if readable and not connection.recv(1 << 16):
                return
            if writable:
                view = view[connection.send(view[: 1 << 14], socket.MSG_DONTWAIT) :]
