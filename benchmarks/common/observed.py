"""Transports that record whether a server responded: a response that the client rejects is not a failure of the server."""

from __future__ import annotations

from typing import Any

from defensemble import GrpcTransport, HttpTransport, Outputs


class _Observed:
    """A transport that records whether its last inference had a response, which the client may reject afterwards."""

    has_response = False

    def infer(self, *args: Any, **options: Any) -> Outputs:
        self.has_response = False
        response: Outputs = super().infer(*args, **options)  # type: ignore[misc]
        self.has_response = True
        return response


class _ObservedGrpc(_Observed, GrpcTransport):
    pass


class _ObservedHttp(_Observed, HttpTransport):
    pass


ObservedTransport = _ObservedGrpc | _ObservedHttp


def observed_transport(url: str) -> ObservedTransport:
    """Return an observed transport for a URL."""
    return _ObservedGrpc(url) if url.startswith("grpc:") else _ObservedHttp(url)
