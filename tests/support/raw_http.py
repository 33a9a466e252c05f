"""HTTP requests as bytes, valid or not."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import suppress
from http.client import BadStatusLine, HTTPResponse

INFER = "/v2/models/ensemble/infer"


def request(method: str, target: str, body: bytes = b"", headers: Iterable[str] = ()) -> bytes:
    """Return a request with the headers, and with the length of its body unless they have one."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    if body and not any(line.lower().startswith(("content-length:", "transfer-encoding:")) for line in lines):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int) -> bytes:
    """Return a body in chunks of a size."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def status_of(port: int, sent: bytes, timeout_s: float = 20.0) -> int | None:
    """Send bytes to a port of this machine; return the status of the response, or None if the connection ended without one."""
    response = exchange(port, sent, timeout_s)
    return None if response is None else response[0]


def exchange(port: int, sent: bytes, timeout_s: float = 20.0) -> tuple[int, dict[str, str], bytes] | None:
    """Send bytes to a port of this machine; return status, headers and body of the response, or None if there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        with suppress(ConnectionError):  # the server may answer, and close, before it has read everything
            connection.sendall(sent)
        response = HTTPResponse(connection)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()
        except (ConnectionError, BadStatusLine):
            return None
        finally:
            response.close()
