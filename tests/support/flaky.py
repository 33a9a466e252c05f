"""A transport that fails when it should, over the models of `fakes.house`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from defensemble import FakeTransport, Outputs, ServiceError
from tests.support.fakes import house


class FlakyTransport(FakeTransport):
    """Raises the next error of `failures` at each inference, then serves. `is_down` raises it at every call.

    `attempts` counts inferences, failed ones included.
    """

    def __init__(self, failures: Iterable[ServiceError | None] = (), url: str = "fake://server", version: str = "1") -> None:
        super().__init__(house()._models, url)
        self.failures = list(failures)
        self.down: Callable[[], ServiceError] | None = None
        self.attempts = 0
        self.version = version
        self.seen: list[dict[str, Any]] = []
        self._count = threading.Lock()

    def infer(self, *args: Any, **options: Any) -> Outputs:
        with self._count:
            self.attempts += 1
            self.seen.append(options)
            failure = self.failures.pop(0) if self.failures else None
        self._fail_if_down()
        if failure is not None:
            raise failure
        outputs = super().infer(*args, **options)
        outputs.model_version = self.version
        return outputs

    def model_metadata(self, model: str, timeout_s: float) -> Any:
        self._fail_if_down()
        return super().model_metadata(model, timeout_s)

    def models(self, timeout_s: float) -> list[str]:
        self._fail_if_down()
        return super().models(timeout_s)

    def ready(self, timeout_s: float) -> bool:
        self._fail_if_down()
        return super().ready(timeout_s)

    def _fail_if_down(self) -> None:
        if self.down is not None:
            raise self.down()
