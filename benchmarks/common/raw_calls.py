"""Calls with requests that were made before, by bare sockets and stubs: what a call costs without a client."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.common.forms import Form
from benchmarks.common.servers import ENSEMBLE
from benchmarks.common.timing import Predict

_RECEIVE_BYTES = 1 << 16
_RECEIVE_TIMEOUT = struct.pack("ll", 30, 0)  # a `timeval`: a server that hangs ends a run by an error

_Images = NDArray[np.float32]
_Request = TypeVar("_Request")
HttpRequest = Callable[[str, _Images], bytes]
"""Returns the request for images to a host (`name:port`)."""


class _ReadyRequests(Generic[_Request]):
    """Requests, each made once for an array of images, which must not change."""

    def __init__(self, make: Callable[[_Images], _Request]) -> None:
        self._make = make
        self._known: dict[int, tuple[_Images, _Request]] = {}  # with the array, whose id no other gets as long as it is here

    def of(self, images: _Images) -> _Request:
        known = self._known.get(id(images))
        if known is None:
            known = self._known[id(images)] = images, self._make(images)
        return known[1]


def predict_with_stub(channel: grpc.Channel, model: str = ENSEMBLE, output: str = "probabilities") -> Predict:
    """Return the call of the generated stub."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def make_message(images: _Images) -> Any:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="images", datatype="FP32", shape=images.shape)
        request.outputs.add(name=output)
        request.raw_input_contents.append(images.tobytes())
        return request

    requests = _ReadyRequests(make_message)

    def predict(images: _Images) -> _Images:
        response = stub.ModelInfer(requests.of(images))
        return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(len(images), -1)

    return predict


def kserve_request(model: str = ENSEMBLE, output: str = "probabilities") -> HttpRequest:
    """Return the requests of the KServe protocol with its binary extension."""

    def make(host: str, images: _Images) -> bytes:
        tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
        document = json.dumps({"inputs": [tensor], "outputs": [{"name": output, "parameters": {"binary_data": True}}]}).encode()
        head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(document) + images.nbytes}\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(document)}\r\n\r\n"
        )
        return head.encode() + document + images.tobytes()

    return make


def bytes_request(path: str) -> HttpRequest:
    """Return requests whose body is the images, without a header of the protocol."""

    def make(host: str, images: _Images) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {images.nbytes}\r\nContent-Type: application/octet-stream\r\n\r\n"
        return head.encode() + images.tobytes()

    return make


class Sockets:
    """HTTP by one socket per thread, with nothing but what a correct response needs."""

    def __init__(self, url: str, request: HttpRequest | None = None) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        make = request or kserve_request()
        self._requests = _ReadyRequests(lambda images: make(parts.netloc, images))
        self._own = threading.local()
        self._all: list[socket.socket] = []

    def predict(self, images: _Images) -> _Images:
        """Return the first tensor of the response, which is a matrix with a row for each image."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)  # unlike `settimeout`, without a poll per call
            self._all.append(connection)
        connection.sendall(self._requests.of(images))
        received = _receive(connection)
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += _receive(connection)
        head = received[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise OSError(f"expected HTTP 200, got {received[:200]!r}")
        if b"\r\ntransfer-encoding: chunked" in head:
            body = _receive_chunks(connection, received[end + 4 :])
        else:
            body_end = end + 4 + _header(head, b"content-length")
            while len(received) < body_end:
                received += _receive(connection)
            body = received[end + 4 :]
        return np.frombuffer(body[_header(head, b"inference-header-content-length") :], "<f4").reshape(len(images), -1)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.close()


def triton_forms(http_url: str, grpc_url: str, model: str, output: str, stack: ExitStack) -> list[Form]:
    """Return the forms that call a model of a Triton over gRPC and over HTTP; `stack` closes their connections."""
    channel = stack.enter_context(grpc.insecure_channel(urlsplit(grpc_url).netloc))
    sockets = Sockets(http_url, kserve_request(model, output))
    stack.callback(sockets.close)
    return [
        Form("Triton, gRPC", predict_with_stub(channel, model, output), "grpc"),
        Form("Triton, HTTP", sockets.predict, "http"),
    ]


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(_RECEIVE_BYTES)
    if not received:
        raise OSError("the server closed the connection before the end of a response")
    return received


def _receive_chunks(connection: socket.socket, received: bytes) -> bytes:
    """Return a body in chunks (RFC 9112, 7.1), of which the start has been received."""
    body = b""
    while True:
        while (line_end := received.find(b"\r\n")) < 0:
            received += _receive(connection)
        size = int(received[:line_end].partition(b";")[0], 16)
        chunk_end = line_end + 2 + size
        while len(received) < chunk_end + 2:
            received += _receive(connection)
        if size == 0:
            return body
        body += received[line_end + 2 : chunk_end]
        received = received[chunk_end + 2 :]


def _header(head: bytes, name: bytes) -> int:
    """Return the value of a header; 0 if the response has no such header."""
    _, found, value = head.partition(b"\r\n" + name + b":")
    return int(value.split(b"\r\n")[0]) if found else 0
