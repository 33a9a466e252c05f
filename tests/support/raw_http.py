"""Send HTTP requests that are bytes, valid or not, as `benchmarks.common.raw_http` makes them."""

from __future__ import annotations

import socket
from contextlib import suppress
from http.client import BadStatusLine, HTTPResponse

INFER = "/v2/models/ensemble/infer"


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
