"""The one seam at the network: what a client needs of a server, whatever the protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._exceptions import InputError

Inputs = Mapping[str, NDArray[np.float32]]
Outputs = dict[str, NDArray[Any]]


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
    """The metadata of a model, which any caller may read."""

    name: str
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True)
class ServerMetadata:
    """The server's name and version, as it reports them."""

    name: str
    version: str


@dataclass(frozen=True)
class ModelState:
    """A line of the server's repository index: a version of a model, and whether it serves.

    `version` is None where the server gives none; `state` is READY, UNAVAILABLE, LOADING, UNLOADING, or empty where it was never loaded;
    `reason` is why it is unavailable, in the server's words ("unloaded" where it was asked to).
    """

    name: str
    version: int | None
    state: str
    reason: str


@dataclass(frozen=True)
class ModelStatistics:
    """What a loaded version of a model has done since it was loaded.

    `requests` ended, well or not (one that was refused for its form never began); `executions` ran, several requests in a batch being one;
    `last_ms` is when the last request came, in milliseconds since 1970, 0 for never.
    """

    name: str
    version: int
    requests: int
    executions: int
    last_ms: int


class Transport(Protocol):
    """What a client needs of a server; every method may be called by several threads, and raises errors of `_exceptions.py` only.

    A `version` of None leaves it to the server, which takes the newest that it has loaded.
    """

    @property
    def url(self) -> str:
        """Where the server is, for messages."""

    def infer(self, model: str, inputs: Inputs, outputs: Sequence[OutputRequest], timeout_s: float, version: int | None = None) -> Outputs:
        """Runs a model; numeric outputs come as arrays in their own type, texts as object arrays of bytes."""

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        """The metadata of a model, which any caller may read."""

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        """The model's configuration as the JSON form of Triton's `ModelConfig` (field names as in `config.pbtxt`).

        Raises:
            ForbiddenError: The server keeps configurations to itself, and no admin key or a wrong one was sent.
        """

    def models(self, timeout_s: float) -> list[str]:
        """Names of the models that are loaded, sorted; from the statistics API, since the repository's is closed to callers."""
        return sorted({one.name for one in self.statistics(timeout_s)})

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        """The models in the server's repository, loaded or not.

        Raises:
            ForbiddenError: The server requires its admin key.
        """

    def load_model(self, model: str, timeout_s: float) -> None:
        """Loads a model from the repository, or again where its files changed; an ensemble's members with it.

        The server may report success for a second load of a model that it refused: `repository_index` shows what is loaded.

        Raises:
            ForbiddenError: The server requires its admin key.
            RequestRefusedError: The server does not load it, or loads nothing on request; the text quotes the server.
            ServerFailedError: The server could not read the model's folder, or failed.
        """

    def unload_model(self, model: str, timeout_s: float) -> None:
        """Unloads a model, and ensembles that need it, after requests that have begun; one that is not loaded is no error.

        Raises:
            ForbiddenError: The server requires its admin key.
            RequestRefusedError: The server unloads nothing on request.
        """

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        """What each version of each loaded model has done."""

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        """The server's name and version."""

    def live(self, timeout_s: float) -> bool:
        """Whether the server reports that it is alive."""

    def ready(self, timeout_s: float) -> bool:
        """Whether the server reports that it is ready; `Client.wait_ready` is stricter: it calls a model."""

    def close(self) -> None:
        """Closes the connections; may be called twice."""


def version_text(version: int) -> str:
    """A model's version as it is sent; an `InputError` unless it is 1 or more (Triton would take -1 for its own choice)."""
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"a model's version is a whole number of 1 or more, or None for the server's choice, got {version!r:.100}")
    return str(version)


def check_admin_key(key: object) -> str | None:
    """The key, if a header takes it, or None; an `InputError`, without the key, unless it is 16 to 256 letters, digits, `_` or `-`."""
    if key is None:
        return None
    expected = "expected 16 to 256 letters, digits, '_' or '-', as the server was started with"
    if not isinstance(key, str):
        raise InputError(f"admin_key must be a str or None, got {type(key).__name__}: {expected}")
    if not re.fullmatch(r"[A-Za-z0-9_\-]{16,256}", key):
        raise InputError(f"the admin key has {len(key)} characters, or some that a header does not take: {expected}")
    return key
