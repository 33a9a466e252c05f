"""What the two clients have in common outside of calls: their servers, from URLs or transports, and their properties."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from .._exceptions import InputError
from .._transport.address import address_from_url
from .._transport.base import ConnectionOptions, TlsFiles
from .calls import Calls
from .replicas import Counters, Replica


class ClientBase:
    """The properties of both clients.

    Args:
        calls: The calls of the client.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def __repr__(self) -> str:
        url = self.url if len(self.urls) == 1 else list(self.urls)
        return f"{type(self).__name__}({url!r}, model={self._calls.model!r}, timeout_s={self.timeout_s:g})"

    @property
    def url(self) -> str:
        """The server's URL; with several servers, their URLs with commas between them."""
        return self._calls.url

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers' URLs."""
        return tuple(replica.url for replica in self._calls.replicas.replicas)

    @property
    def timeout_s(self) -> float:
        """Timeout of a call, in seconds."""
        return self._calls.timeout_s

    @property
    def max_parallel(self) -> int:
        """Requests of one call that are sent at the same time."""
        return self._calls.max_parallel

    @property
    def counters(self) -> Counters:
        """What this client has done: calls, requests, retries, failures, ejected servers, images."""
        return self._calls.counters


def replicas_from_arguments(
    url: str | Sequence[str],
    transport: Any,
    open_transport: Callable[[str, ConnectionOptions], Any],
    *,
    tls: TlsFiles | None,
    compression: str | None,
    admin_key: str | None,
    may_be_async: bool,
) -> list[Replica]:
    """Return the servers that a client is created for.

    Args:
        url: One or several URLs.
        transport: One or several transports, used in place of the URLs; None for none.
        open_transport: Returns the transport for a URL.
        tls: PEM files.
        compression: `gzip` or None.
        admin_key: The servers' admin key.
        may_be_async: Whether the client can use asynchronous transports.

    Raises:
        InputError: An argument is invalid, or options of connections come together with a transport.
    """
    if transport is None:
        urls = [url] if not isinstance(url, Sequence) or isinstance(url, (str, bytes)) else list(url)
        if not urls:
            raise InputError("url is an empty list: pass one URL, or several servers' URLs")
        options = ConnectionOptions(admin_key, tls, compression)
        distinct = dict.fromkeys(address_from_url(each).url for each in urls)
        return [_replica(open_transport(each, options)) for each in distinct]
    for name, option in (("admin_key", admin_key), ("tls", tls), ("compression", compression)):
        if option is not None:
            raise InputError(f"got both transport and {name}: pass it to the transport, HttpTransport(url, ConnectionOptions({name}=...))")
    replicas = [_replica(each) for each in (transport if isinstance(transport, (list, tuple)) else [transport])]
    if not replicas:
        raise InputError("transport is empty: pass a transport, or several")
    for replica in replicas:
        if replica.is_async and not may_be_async:
            raise InputError(f"{type(replica.transport).__name__} is asynchronous: use it with AsyncClient")
    return replicas


def _replica(transport: Any) -> Replica:
    if isinstance(transport, type) or not callable(getattr(transport, "infer", None)):
        raise InputError(f"transport must be a transport such as FakeTransport(models), or a list of them; got {transport!r:.100}")
    return Replica(transport, inspect.iscoroutinefunction(transport.infer))
