"""gRPC servers in this process that observe how clients end their calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

OLD, NEW = "2.51.0", "2.59.0"  # the first of them crashes if a channel closes during a call


class ObservingServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers inferences after `hold_s`, or when `release` is set.

    Attributes:
        requests: The requests of inferences, in order.
        headers: The metadata of each.
        left_s: The time that each had left by its gRPC deadline; None without one.
        endings: Whether each was still wanted when its answer was due: False if the client cancelled it or closed the channel.
    """

    def __init__(self, name: str, version: str, hold_s: float, answer: Callable[[Any, Any], Any] | None) -> None:
        self._metadata = service_pb2.ServerMetadataResponse(name=name, version=version)
        self._hold_s = hold_s
        self._answer = answer or one_output
        self.port = 0
        self.release = threading.Event()
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.left_s: list[float | None] = []
        self.endings: list[bool] = []

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._metadata

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.headers.append(dict(context.invocation_metadata()))
        self.left_s.append(context.time_remaining())
        self.requests.append(request)
        if self._hold_s:
            ended = threading.Event()
            context.add_callback(ended.set)
            deadline = time.monotonic() + self._hold_s
            while not (self.release.is_set() or ended.is_set()) and time.monotonic() < deadline:
                ended.wait(0.01)
            self.endings.append(context.is_active())
        return self._answer(request, context)

    def wait_for(self, count: int, values: list[Any]) -> None:
        """Wait until there are `count` of the values."""
        deadline = time.monotonic() + 10
        while len(values) < count:
            assert time.monotonic() < deadline, values
            time.sleep(0.005)


def one_output(request: Any, context: Any) -> Any:
    """Answer with one row of two numbers per image."""
    response = service_pb2.ModelInferResponse(model_version="7", id=request.id)
    rows = request.inputs[0].shape[0]
    response.outputs.add(name="y", datatype="FP32", shape=[rows, 2])
    response.raw_output_contents.append(np.arange(2 * rows, dtype=np.float32).tobytes())
    return response


@contextmanager
def observing(
    version: str = OLD,
    *,
    name: str = "triton",
    hold_s: float = 0,
    answer: Callable[[Any, Any], Any] | None = None,
    credentials: Any = None,
    methods: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType({}),
    options: Any = None,
) -> Iterator[ObservingServer]:
    """Run a server.

    Args:
        version: The version that it reports.
        name: The name that it reports.
        hold_s: How long it waits before it answers an inference.
        answer: Answers inferences; by default `one_output`.
        credentials: The server's credentials, for TLS.
        methods: More methods of the service; without them it has `ModelInfer`, `ServerLive` and `ServerMetadata` only.
        options: Options of the gRPC library.
    """
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    servicer = ObservingServer(name, version, hold_s, answer)
    for method, function in methods.items():
        setattr(servicer, method, function)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    address = "127.0.0.1:0"
    servicer.port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    server.start()
    try:
        yield servicer
    finally:
        servicer.release.set()
        server.stop(0).wait(5)
