"""A blocking transport over the calls of an asynchronous one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .._coroutines import run_blocking
from .base import (
    NO_HEADERS,
    AsyncTransport,
    Inputs,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    OutputRequest,
    Outputs,
    ServerMetadata,
    Transport,
)


class BlockingTransport(Transport):
    """The base class of the blocking transports: each call runs the coroutine of the same name, which must not suspend.

    Args:
        calls: The calls, over connections that block.
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        return self._calls.url

    @property
    def missing_features(self) -> frozenset[str]:
        return self._calls.missing_features

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
        return run_blocking(self._calls.infer(model, inputs, outputs, timeout_s, version, request_id=request_id, headers=headers))

    def model_metadata(self, model: str, timeout_s: float) -> ModelMetadata:
        return run_blocking(self._calls.model_metadata(model, timeout_s))

    def model_config(self, model: str, timeout_s: float, version: int | None = None) -> dict[str, Any]:
        return run_blocking(self._calls.model_config(model, timeout_s, version))

    def models(self, timeout_s: float) -> list[str]:
        return run_blocking(self._calls.models(timeout_s))

    def repository_index(self, timeout_s: float) -> list[ModelState]:
        return run_blocking(self._calls.repository_index(timeout_s))

    def load_model(self, model: str, timeout_s: float) -> None:
        run_blocking(self._calls.load_model(model, timeout_s))

    def unload_model(self, model: str, timeout_s: float) -> None:
        run_blocking(self._calls.unload_model(model, timeout_s))

    def statistics(self, timeout_s: float) -> list[ModelStatistics]:
        return run_blocking(self._calls.statistics(timeout_s))

    def server_metadata(self, timeout_s: float) -> ServerMetadata:
        return run_blocking(self._calls.server_metadata(timeout_s))

    def live(self, timeout_s: float) -> bool:
        return run_blocking(self._calls.live(timeout_s))

    def ready(self, timeout_s: float) -> bool:
        return run_blocking(self._calls.ready(timeout_s))

    def close(self) -> None:
        run_blocking(self._calls.close())
