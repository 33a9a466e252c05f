"""The compared forms: our clients and transports, and the same calls by bare tritonclient, bare stubs and bare sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc

from benchmarks.calling.figures import CLIENT, SOCKET, STUB, TRANSPORT, TRITONCLIENT, TWO_SERVERS, form_name
from benchmarks.common.forms import Form, predict_with
from benchmarks.common.servers import ENSEMBLE
from benchmarks.common.timing import Predict
from defensemble import Client, GrpcTransport, HttpTransport, OutputRequest
from defensemble_server import Server

_TIMEOUT_S = 60.0
_RECEIVE_BYTES = 1 << 16

_Images = NDArray[np.float32]
_Request = TypeVar("_Request")


@contextmanager
def open_forms(server: Server) -> Iterator[list[Form]]:
    """Create every form that blocks. All callers of a form share it, as applications share a client."""
    kinds: list[tuple[str, str, type[GrpcTransport] | type[HttpTransport]]] = [
        ("grpc", server.grpc_url, GrpcTransport),
        ("http", server.http_url, HttpTransport),
    ]
    with ExitStack() as stack:
        forms = []
        for protocol, url, transport_class in kinds:
            two = stack.enter_context(Client(url, transport=[transport_class(url), transport_class(url)]))
            transport = transport_class(url)
            stack.callback(transport.close)
            for kind, predict in (
                (CLIENT, predict_with(stack.enter_context(Client(url)))),
                (TWO_SERVERS, predict_with(two)),
                (TRANSPORT, _predict_with_transport(transport)),
            ):
                forms.append(Form(form_name(protocol, kind), predict, protocol))
        address = urlsplit(server.grpc_url).netloc
        triton = InferenceServerClient(address)
        stack.callback(triton.close)
        channel = stack.enter_context(grpc.insecure_channel(address))
        forms.append(Form(form_name("grpc", TRITONCLIENT), _predict_with_tritonclient(triton), "grpc"))
        forms.append(Form(form_name("grpc", STUB), _predict_with_stub(channel), "grpc"))
        sockets = _Sockets(server.http_url)
        stack.callback(sockets.close)
        forms.append(Form(form_name("http", SOCKET), sockets.predict, "http"))
        yield forms


def _predict_with_transport(transport: GrpcTransport | HttpTransport) -> Predict:
    outputs = [OutputRequest("probabilities")]
    return lambda images: transport.infer(ENSEMBLE, {"images": images}, outputs, _TIMEOUT_S)["probabilities"]


def _predict_with_tritonclient(client: InferenceServerClient) -> Predict:
    """Return the call as tritonclient's documents show it."""

    def predict(images: _Images) -> _Images:
        tensor = InferInput("images", images.shape, "FP32")
        tensor.set_data_from_numpy(images)
        result = client.infer(ENSEMBLE, [tensor], outputs=[InferRequestedOutput("probabilities")])
        probabilities: _Images = result.as_numpy("probabilities")
        return probabilities

    return predict


def _predict_with_stub(channel: grpc.Channel) -> Predict:
    """Return the call of the generated stub with a message that was made before."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    requests = _ReadyRequests(_message)

    def predict(images: _Images) -> _Images:
        response = stub.ModelInfer(requests.of(images))
        return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(len(images), -1)

    return predict


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


def _message(images: _Images) -> Any:
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE)
    request.inputs.add(name="images", datatype="FP32", shape=images.shape)
    request.outputs.add(name="probabilities")
    request.raw_input_contents.append(images.tobytes())
    return request


class _Sockets:
    """HTTP by one socket per thread and requests that were made before, with nothing but what a correct response needs."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 80))
        self._requests = _ReadyRequests(self._request)
        self._own = threading.local()
        self._all: list[socket.socket] = []

    def predict(self, images: _Images) -> _Images:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = socket.create_connection(self._address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._all.append(connection)
        connection.sendall(self._requests.of(images))
        received = connection.recv(_RECEIVE_BYTES)
        while (end := received.find(b"\r\n\r\n")) < 0 and received:
            received += connection.recv(_RECEIVE_BYTES)
        head = received[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise OSError(f"expected HTTP 200, got {received[:200]!r}")
        body_end = end + 4 + _header(head, b"content-length")
        while len(received) < body_end:
            received += connection.recv(_RECEIVE_BYTES)
        start = end + 4 + _header(head, b"inference-header-content-length")
        return np.frombuffer(received[start:], "<f4").reshape(len(images), -1)

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _request(self, images: _Images) -> bytes:
        tensor = {"name": "images", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": images.nbytes}}
        output = {"name": "probabilities", "parameters": {"binary_data": True}}
        document = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
        host, port = self._address
        head = (
            f"POST /v2/models/{ENSEMBLE}/infer HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(document) + images.nbytes}\r\n"
            f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(document)}\r\n\r\n"
        )
        return head.encode() + document + images.tobytes()


def _header(head: bytes, name: bytes) -> int:
    return int(head.split(b"\r\n" + name + b":")[1].split(b"\r\n")[0])
