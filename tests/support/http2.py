"""Connections of HTTP/2 and header fields: just enough to call a method of gRPC and to flood."""

from __future__ import annotations

import select
import socket
from contextlib import suppress

from benchmarks.common.http2 import PREFACE, SETTINGS, frame


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
