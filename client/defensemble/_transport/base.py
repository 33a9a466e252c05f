"""The transport protocol: all network access of the client goes through it, whatever the protocol on the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from defensemble_repository import admin_key
from defensemble_repository.errors import RepositoryError

from .._exceptions import InputError

Inputs = Mapping[str, NDArray[np.float32]]
NO_HEADERS: Mapping[str, str] = MappingProxyType({})

# Parts of the KServe v2 protocol, and Triton's extensions of it, that other servers may lack.
BINARY_TENSORS = "binary tensors"
CLASSIFICATION = "classification"
MODEL_CONFIGURATION = "model configuration"
STATISTICS = "statistics"


class Outputs(dict[str, NDArray[Any]]):
    """The outputs of a response, by name.

    Attributes:
        model_version: The version of the model that responded; empty if the server does not report it.

    Example:
        >>> outputs = transport.infer("alpha", {"images": images}, [OutputRequest("logits")], timeout_s=5)
        >>> outputs["logits"], outputs.model_version
    """

    def __init__(self, values: Mapping[str, NDArray[Any]], model_version: str = "") -> None:
        super().__init__(values)
        self.model_version = model_version


@dataclass(frozen=True)
class OutputRequest:
    """A requested output.

    With `class_count` = k > 0, the server returns the k largest values as `value:index:name` strings (Triton's classification extension).

    Example:
        >>> transport.infer("alpha", {"images": images}, [OutputRequest("logits")], timeout_s=5)
    """

    name: str
    class_count: int = 0


@dataclass(frozen=True)
class TensorMetadata:
    """Name, KServe datatype (`FP32`) and shape of a tensor, batch dimension included; -1 means any size.

    Example:
        >>> TensorMetadata("images", "FP32", (-1, 3, 32, 32))
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a model. Every caller may read it.

    Example:
        >>> [tensor.name for tensor in client.transport.model_metadata("alpha", timeout_s=5).outputs]
    """

    name: str
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """Name and version of a server, as it reports them.

    Example:
        >>> client.server_metadata().version
    """

    name: str
    version: str


@dataclass(frozen=True)
class ModelState:
    """An entry of the server's repository index: the state of one version of a model.

    Attributes:
        name: Name of the model.
        version: Version of the model; None if the server reports none.
        state: READY, UNAVAILABLE, LOADING, UNLOADING, or empty if the model was never loaded.
        reason: Why the model is unavailable, as the server words it ("unloaded" after an unload request).

    Example:
        >>> [entry.name for entry in transport.repository_index(timeout_s=5) if entry.state == "READY"]
    """

    name: str
    version: int | None
    state: str
    reason: str


@dataclass(frozen=True)
class ModelStatistics:
    """Counters of a loaded version of a model, from the time it was loaded.

    Attributes:
        name: Name of the model.
        version: Version of the model.
        requests: Finished requests, failed ones included. A malformed request is rejected before it counts.
        executions: Executions of the model; requests that are batched together count as one.
        last_ms: Time of the last request in milliseconds since 1970; 0 if there was none.
        failures: Failed requests.
        images: Images in the successful requests.
        success_ns: Total time of the successful requests in nanoseconds, from arrival to response.
        queue_ns: Total time that they waited in the queue, in nanoseconds.
        compute_ns: Total time that they were computed, in nanoseconds, input and output included; of an ensemble, that of all its steps.
        url: The server; empty if a transport returned them, which has only one.

    Example:
        >>> {entry.name: entry.requests for entry in transport.statistics(timeout_s=5)}
    """

    name: str
    version: int
    requests: int
    executions: int
    last_ms: int
    failures: int = 0
    images: int = 0
    success_ns: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    url: str = ""


@dataclass(frozen=True)
class TlsFiles:
    """The PEM files of `https://` and `grpcs://`.

    Attributes:
        ca_file: Certificates of the authorities to trust; None for those of the system (HTTP) or of gRPC.
        certificate_file: The client's certificate chain, for mutual TLS; None for none.
        key_file: The private key of that certificate.

    Example:
        >>> Client("https://models.example:8443", tls=TlsFiles("ca.pem", "client.pem", "client.key"))
    """

    ca_file: str | Path | None = None
    certificate_file: str | Path | None = None
    key_file: str | Path | None = None


@dataclass(frozen=True)
class ConnectionOptions:
    """How a client connects to its servers.

    Attributes:
        admin_key: Sent only with calls of the repository API and for configurations.
        tls: The PEM files for `https://` and `grpcs://`; None for the default authorities and no client certificate.
        compression: `gzip` to compress requests and accept compressed responses; None for neither.

    Example:
        >>> HttpTransport("https://models.example:8443", ConnectionOptions(tls=TlsFiles("ca.pem")))
    """

    admin_key: str | None = None
    tls: TlsFiles | None = None
    compression: str | None = None


class Transport(Protocol):
    """Access to a server. Every method is thread-safe and raises only the errors of `_exceptions.py`.

    With `version=None`, the server chooses the version: the newest that it has loaded.

    Example:
        >>> transport: Transport = HttpTransport("http://localhost:8000")
        >>> transport.models(timeout_s=5)
    """

    @property
    def url(self) -> str:
        """The server's URL, for messages."""

    @property
    def missing_features(self) -> frozenset[str]:
        """Parts of the protocol that the server was found not to have, such as `BINARY_TENSORS`."""
        return frozenset()

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        """Run a model.

        Args:
            model: Name of the model.
            inputs: The inputs by name.
            outputs: The outputs to request.
            timeout_s: Timeout in seconds.
            version: The version; None for the server's choice.
            request_id: Sent with the request, for the server's logs and traces.
            headers: More headers (HTTP) or metadata (gRPC), such as `traceparent`; names in lower case.

        Returns:
            The outputs by name. Numeric outputs are arrays of their own type; strings are object arrays of bytes.
        """

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """Return the metadata of a model. Every caller may read it.

        Args:
            model: Name of the model.
            timeout_s: Timeout in seconds.
        """

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """Return the model's configuration as the JSON form of Triton's `ModelConfig` (field names as in `config.pbtxt`).

        Args:
            model: Name of the model.
            timeout_s: Timeout in seconds.
            version: The version; None for the server's choice.

        Raises:
            ForbiddenError: The server restricts configurations, and no admin key or a wrong one was sent.
        """

    def models(self, timeout_s: float) -> list[str]:
        """Return the names of the loaded models, sorted: from the statistics or, where a server has none, its repository index."""
        return sorted({entry.name for entry in self.statistics(timeout_s)})

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        """Return the state of each model in the server's repository, loaded or not.

        Raises:
            ForbiddenError: The server requires its admin key.
        """

    def load_model(self, model: str, timeout_s: float) -> None:
        """Load a model from the repository, or reload it if its files changed. Loading an ensemble loads its members.

        After it rejected a model, the server may report success for a second attempt: check `repository_index` for what is loaded.

        Args:
            model: Name of the model.
            timeout_s: Timeout in seconds.

        Raises:
            ForbiddenError: The server requires its admin key.
            RequestRefusedError: The server rejects the model, or its model control mode does not allow loading. The text quotes the server.
            ServerFailedError: The server could not read the model's folder, or failed.
        """

    def unload_model(self, model: str, timeout_s: float) -> None:
        """Unload a model and the ensembles that need it, after running requests finish. Unloading an unloaded model is no error.

        Args:
            model: Name of the model.
            timeout_s: Timeout in seconds.

        Raises:
            ForbiddenError: The server requires its admin key.
            RequestRefusedError: The server's model control mode does not allow unloading.
        """

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """Return the counters of each version of each loaded model."""

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """Return the server's name and version."""

    def live(self, timeout_s: float) -> bool:
        """Return whether the server reports that it is alive."""

    def ready(self, timeout_s: float) -> bool:
        """Return whether the server reports that it is ready. `Client.wait_ready` is stricter: it runs a model."""

    def close(self) -> None:
        """Close the connections. May be called twice."""


class AsyncTransport(Protocol):
    """Access to a server from an event loop, or from several, one after the other. Each method is that of `Transport` as a coroutine.

    Example:
        >>> transport: AsyncTransport = AsyncHttpTransport("http://localhost:8000")
        >>> await transport.models(timeout_s=5)
    """

    @property
    def url(self) -> str:
        """The server's URL, for messages."""

    @property
    def missing_features(self) -> frozenset[str]:
        """Parts of the protocol that the server was found not to have."""
        return frozenset()

    async def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        """Run a model; see `Transport.infer`."""

    async def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """Return the metadata of a model; see `Transport.model_metadata`."""

    async def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """Return the model's configuration; see `Transport.model_config`."""

    async def models(self, timeout_s: float) -> list[str]:
        """Return the names of the loaded models; see `Transport.models`."""
        return sorted({entry.name for entry in await self.statistics(timeout_s)})

    async def repository_index(self, timeout_s: float) -> list[ModelState]:
        """Return the state of each model; see `Transport.repository_index`."""

    async def load_model(self, model: str, timeout_s: float) -> None:
        """Load a model; see `Transport.load_model`."""

    async def unload_model(self, model: str, timeout_s: float) -> None:
        """Unload a model; see `Transport.unload_model`."""

    async def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """Return the counters of each version of each loaded model."""

    async def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """Return the server's name and version."""

    async def live(self, timeout_s: float) -> bool:
        """Return whether the server reports that it is alive."""

    async def ready(self, timeout_s: float) -> bool:
        """Return whether the server reports that it is ready."""

    async def close(self) -> None:
        """Close the connections. May be called twice."""


def format_version(version: int) -> str:
    """Return a model version in the form the protocol sends.

    Raises:
        InputError: The version is not an integer of 1 or more. (Triton would read -1 as its own choice.)
    """
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"a model version must be an integer of 1 or more, or None for the server's choice; got {version!r:.100}")
    return str(version)


def check_admin_key(key: object) -> str | None:
    """Return the admin key if it is valid in a header, or None for no key. The errors do not show the key.

    Raises:
        InputError: The key is not a string of 16 to 256 characters, each a letter, a digit, `_` or `-`.
    """
    try:
        return None if key is None else admin_key.check_admin_key(key)
    except RepositoryError as error:
        raise InputError(f"{error}: pass the key that the server was started with, or None") from error


def check_compression(compression: str | None) -> str | None:
    """Return the compression; raise an `InputError` if it is neither `gzip` nor None."""
    if compression not in ("gzip", None):
        raise InputError(f"compression must be 'gzip' or None, got {compression!r:.100}")
    return compression
