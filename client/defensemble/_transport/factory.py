"""The transport for a URL, chosen by its scheme."""

from __future__ import annotations

from .address import address_from_url
from .base import Transport


def transport_from_url(url: str, admin_key: str | None = None) -> Transport:
    """The transport for a URL's scheme; no connection is made yet. An `InputError` is raised for other URLs and for a malformed key.

    `admin_key` goes with what a server may keep to its operator: the repository's index, loading, unloading and configurations.
    """
    address = address_from_url(url)
    if address.scheme in ("grpc", "grpcs"):
        from .grpc_transport import GrpcTransport  # half a second: not paid by callers of HTTP

        return GrpcTransport(url, admin_key=admin_key)
    from .http_transport import HttpTransport

    return HttpTransport(url, admin_key=admin_key)
