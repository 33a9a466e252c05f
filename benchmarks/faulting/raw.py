"""Bytes over a bare socket: what a hostile caller sends, and what became of it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import http2
from benchmarks.common.raw_http import request
from benchmarks.faulting.fault import ACCEPTED, CLOSED, REFUSED, UNANSWERED, UNREACHED

TIMEOUT_S = 1.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_RECEIVE_BYTES = 1 << 16


def connect(port: int, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Connect to a port of this machine.

    Raises:
        OSError: Nothing listens there, or nothing accepts.
    """
    return socket.create_connection(("127.0.0.1", port), timeout=timeout_s)


def send_bytes(port: int, content: bytes, *, timeout_s: float = TIMEOUT_S, half_close: bool = True) -> str:
    """Send bytes and return what became of them.

    Args:
        port: The port.
        content: The bytes.
        timeout_s: Seconds to wait for more than silence.
        half_close: Whether to announce that nothing more follows.
    """
    try:
        connection = connect(port, timeout_s)
    except OSError:
        return UNREACHED
    received = b""
    with connection:
        try:
            connection.sendall(content)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has closed the connection, perhaps after an answer
        try:
            while not _STATUS.search(received) and (part := connection.recv(_RECEIVE_BYTES)):
                received = (received + part)[-_RECEIVE_BYTES:]
        except TimeoutError:
            return REFUSED if received else UNANSWERED
        except OSError:
            return CLOSED
    return outcome_of(received)


def outcome_of(received: bytes) -> str:
    """Return what an answer means: only a status of success accepts a request."""
    status = _STATUS.search(received)
    if status is None:
        return REFUSED if received else CLOSED  # HTTP/2 answers nonsense with GOAWAY
    return ACCEPTED if status[1].startswith(b"2") else REFUSED


def http_request(path: str, body: bytes = b"", *, method: str = "POST", headers: Mapping[str, str] | None = None) -> bytes:
    """Return an HTTP request. `headers` are added, or replace the length of the body; a body in chunks has none."""
    fields = {"Connection": "close", **(headers or {})}
    if "Transfer-Encoding" not in fields:
        fields.setdefault("Content-Length", str(len(body)))
    return request(method, path, body, [f"{name}: {value}" for name, value in fields.items()])


def infer_path(model: str) -> str:
    """Return the path of an inference."""
    return f"/v2/models/{model}/infer"


def json_request(model: str, document: Mapping[str, Any], tensors: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """Return an inference over HTTP, with tensors after its JSON."""
    head = json.dumps(document).encode()
    own = {"Inference-Header-Content-Length": str(len(head)), **(headers or {})} if tensors or headers else {}
    return http_request(infer_path(model), head + tensors, headers=own)


def valid_document(images: NDArray[np.float32], outputs: Sequence[str] = ("probabilities",)) -> dict[str, Any]:
    """Return the JSON of a valid inference."""
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return {"inputs": [tensor], "outputs": [{"name": name} for name in outputs]}


def grpc_frames(generator: np.random.Generator, size: int) -> bytes:
    """Return the preface of HTTP/2 and a frame whose header is valid and whose `size` bytes are random."""
    kind, flags = int(generator.integers(0, 10)), int(generator.integers(0, 256))
    stream = int(generator.integers(0, 8))
    return http2.PREFACE + http2.frame(http2.SETTINGS) + http2.frame(kind, flags, stream, generator.bytes(size))
