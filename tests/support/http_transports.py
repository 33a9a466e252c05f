"""Both HTTP transports behind the blocking interface, for tests of what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from defensemble import HttpTransport, Transport
from defensemble._transport.base import ConnectionOptions
from defensemble._transport.http_transport import AsyncHttpTransport

Connect = Callable[..., Transport]
"""Called with the URL and perhaps options."""


class InEventLoops:
    """The calls of an asynchronous transport, each in an event loop of its own."""

    def __init__(self, calls: AsyncHttpTransport) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._calls, name)
        return (lambda *arguments, **named: asyncio.run(value(*arguments, **named))) if asyncio.iscoroutinefunction(value) else value


def connect_asyncio(url: str, options: ConnectionOptions | None = None) -> Transport:
    return cast(Transport, InEventLoops(AsyncHttpTransport(url, options)))


KINDS: dict[str, Connect] = {"blocking": HttpTransport, "asyncio": connect_asyncio}


def idle_connections(transport: Transport) -> Any:
    """The connections that a transport keeps for its next calls."""
    return cast(Any, transport)._calls._pool._idle
