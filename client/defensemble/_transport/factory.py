"""Create the transport for the scheme of a URL."""

from __future__ import annotations

from .address import address_from_url
from .base import Transport


def transport_from_url(url: str, admin_key: str | None = None) -> Transport:
    """Return the transport for the scheme of a URL. No connection is made yet.

    Args:
        url: The server's URL.
        admin_key: Sent with the calls that a server may restrict: the repository index, loading, unloading and configurations.

    Raises:
        InputError: The URL is not the URL of a server, or the key is malformed.
    """
    address = address_from_url(url)
    if address.scheme in ("grpc", "grpcs"):
        from .grpc_transport import GrpcTransport  # takes half a second, which HTTP users need not pay

        return GrpcTransport(url, admin_key=admin_key)
    from .http_transport import HttpTransport

    return HttpTransport(url, admin_key=admin_key)
