"""The one seam at the network: what a client needs of a server, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from defensemble._exceptions import InputError

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}


@dataclass(frozen=True)
class OutputRequest:
    """An output to ask for; with `class_count` k, its k largest values as `value:index:name` texts (Triton's classification extension)."""

    name: str
    class_count: int = 0


@dataclass(frozen=True)
class TensorMetadata:
    """Name, KServe datatype (`FP32`) and shape of a tensor, batch dimension included; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """What a server tells everyone about a model."""

    name: str
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """The server's name and version, as it says them."""

    name: str
    version: str


class Transport(Protocol):
    """What a client needs of a server; every method may be called by several threads, and raises errors of `_exceptions.py` only."""

    @property
    def url(self) -> str:
        """Where the server is, for messages."""

    def infer(
        self, model: str, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[OutputRequest], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Runs a model; numeric outputs come as arrays in their own type, texts as object arrays of bytes."""

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """What the server tells everyone about a model."""

    def model_config(self, model: str, timeout_s: float) -> dict[str, Any]:
        """The model's configuration as the JSON form of Triton's `ModelConfig` (field names as in `config.pbtxt`).

        Raises:
            ForbiddenError: The server keeps configurations to itself.
        """

    def models(self, timeout_s: float) -> list[str]:
        """Names of the models that are loaded, sorted; from the statistics API, since the repository's is closed to callers."""

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """The server's name and version."""

    def live(self, timeout_s: float) -> bool:
        """Whether the server says that it lives."""

    def ready(self, timeout_s: float) -> bool:
        """Whether the server says that it is ready; `Client.wait_ready` asks a model instead, which is stricter."""

    def close(self) -> None:
        """Lets go of the connections; may be called twice."""


@dataclass(frozen=True)
class Address:
    """A server's address, taken from a URL."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as URLs and gRPC targets write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL with its port."""
        return f"{self.scheme}://{self.netloc}"


def address_from_url(url: str) -> Address:
    """Splits a server's URL, such as `grpc://localhost:8001`; without a port, 8001 for gRPC and 8000 for HTTP.

    Raises:
        InputError: It is not such a URL.
    """
    expected = "expected grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT or https://HOST:PORT, such as grpc://localhost:8001"
    if not isinstance(url, str):
        raise InputError(f"url must be a str, got {type(url).__name__}: {expected}")
    if "://" not in url:
        raise InputError(f"the URL {url!r} has no scheme: {expected}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the URL {url!r} cannot be read ({error}): {expected}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(f"the URL {url!r} has the unknown scheme {parts.scheme!r}: {expected}")
    if not parts.hostname:
        raise InputError(f"the URL {url!r} has no host: {expected}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username or parts.password:
        raise InputError(f"the URL {url!r} holds more than scheme, host and port: {expected}")
    try:
        parts.hostname.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InputError(f"the URL {url!r} has no valid host name ({error}): {expected}") from error
    return Address(parts.scheme, parts.hostname, DEFAULT_PORTS[parts.scheme] if port is None else port)


def transport_from_url(url: str) -> Transport:
    """The transport for a URL's scheme; no connection is made yet.

    Raises:
        InputError: It is not a server's URL.
    """
    address = address_from_url(url)
    if address.scheme in ("grpc", "grpcs"):
        from defensemble._grpc import GrpcTransport  # half a second: not paid by callers of HTTP

        return GrpcTransport(url)
    from defensemble._http import HttpTransport

    return HttpTransport(url)
