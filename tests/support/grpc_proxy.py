"""A gRPC server that forwards unary calls to another, and fails the calls that a test chooses with a status of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]


class GrpcProxy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """`calls` holds the method of each call, `infer_statuses` the status of the next inferences, such as "UNAVAILABLE"."""

    def __init__(self, target: str) -> None:
        self.calls: list[str] = []
        self.infer_statuses: deque[str] = deque()
        self._channel = grpc.insecure_channel(target)
        self._server = grpc.server(ThreadPoolExecutor(32), handlers=[self])
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = handler_call_details.method

        def forward(request: bytes, context: grpc.ServicerContext) -> Any:
            name = method.rpartition("/")[2]
            self.calls.append(name)
            if name == "ModelInfer" and self.infer_statuses:
                context.abort(grpc.StatusCode[self.infer_statuses.popleft()], "from the proxy")
            try:
                return self._channel.unary_unary(method)(request, timeout=30)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.unary_unary_rpc_method_handler(forward)

    def close(self) -> None:
        self._server.stop(None).wait(10)
        self._channel.close()


@contextmanager
def grpc_proxied(url: str) -> Iterator[GrpcProxy]:
    """Run a proxy in front of the server with this URL."""
    proxy = GrpcProxy(url.removeprefix("grpc://"))
    try:
        yield proxy
    finally:
        proxy.close()
