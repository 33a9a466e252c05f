"""Both clients over both protocols, behind one surface that blocks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from defensemble import AsyncClient, Client

if TYPE_CHECKING:
    from defensemble_server import Server

KINDS = ("grpc", "http", "async grpc", "async http")
_SLOW = pytest.mark.slow
# For tests that take long: each protocol and each client once, the other two as slow tests.
TWO_KINDS = ("grpc", pytest.param("http", marks=_SLOW), pytest.param("async grpc", marks=_SLOW), "async http")
HTTP_KIND = ("async http", *(pytest.param(kind, marks=_SLOW) for kind in ("grpc", "http", "async grpc")))


class _LoopClient:
    """An `AsyncClient` with the methods of `Client`, each run by an event loop of its own."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.client, name)
        if not inspect.iscoroutinefunction(value):
            return value
        return lambda *arguments, **options: self.loop.run_until_complete(value(*arguments, **options))


def url_of(kind: str, server: Server, port: int | None = None) -> str:
    """The URL for one of `KINDS`; with a port, that of a proxy."""
    if port is not None:
        return f"{kind.split()[-1]}://127.0.0.1:{port}"
    return server.grpc_url if kind.endswith("grpc") else server.http_url


@contextmanager
def client_of(kind: str, url: str | Sequence[str], model: str | None = None, **options: Any) -> Iterator[Client]:
    """Return a client of one of `KINDS`, with the methods of `Client`."""
    if not kind.startswith("async"):
        with Client(url, model, **options) as client:
            yield client
        return
    wrapped = _LoopClient(AsyncClient(url, model, **options))
    try:
        yield cast("Client", wrapped)
    finally:
        wrapped.loop.run_until_complete(wrapped.client.close())
        wrapped.loop.run_until_complete(wrapped.loop.shutdown_default_executor())
        wrapped.loop.close()
