"""The compared forms: our clients and transports, and the same calls by bare tritonclient, bare stubs and bare sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

from benchmarks.calling.figures import CLIENT, SOCKET, STUB, TRANSPORT, TRITONCLIENT, TWO_SERVERS, form_name
from benchmarks.common.forms import Form, predict_with
from benchmarks.common.raw_calls import Sockets, predict_with_stub
from benchmarks.common.servers import ENSEMBLE
from benchmarks.common.timing import Predict
from defensemble import Client, GrpcTransport, HttpTransport, OutputRequest
from defensemble_server import Server

_TIMEOUT_S = 60.0

_Images = NDArray[np.float32]


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
        forms.append(Form(form_name("grpc", STUB), predict_with_stub(channel), "grpc"))
        sockets = Sockets(server.http_url)
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
