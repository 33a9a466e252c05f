"""Create the transport for the scheme of a URL."""

from __future__ import annotations

from .address import address_from_url
from .base import AsyncTransport, ConnectionOptions, Transport


def transport_from_url(url: str, options: ConnectionOptions | None = None) -> Transport:
    """Return the transport for the scheme of a URL. No connection is made yet.

    Args:
        url: The server's URL.
        options: The admin key, the files for TLS, and the compression.

    Raises:
        InputError: The URL is not the URL of a server, or an option is invalid.
    """
    if address_from_url(url).scheme in ("grpc", "grpcs"):
        from .grpc_transport import GrpcTransport  # takes half a second, which HTTP users need not pay

        return GrpcTransport(url, options)
    from .http_transport import HttpTransport

    return HttpTransport(url, options)


def async_transport_from_url(url: str, options: ConnectionOptions | None = None) -> AsyncTransport:
    """Return the asynchronous transport for the scheme of a URL; see `transport_from_url`."""
    if address_from_url(url).scheme in ("grpc", "grpcs"):
        from .grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(url, options)
    from .http_transport import AsyncHttpTransport

    return AsyncHttpTransport(url, options)
