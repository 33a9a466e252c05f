"""A BentoML service with raw bytes in and out. `bentoml serve` imports `Service`."""

from __future__ import annotations

from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peering.apps.ensemble import Ensemble

_Bytes = Annotated[bytes, ContentType("application/octet-stream")]


@bentoml.service(workers=2, traffic={"timeout": 60})
class Service:
    """The ensemble. Each worker process has its own."""

    def __init__(self) -> None:
        self._ensemble = Ensemble.from_environment()

    @bentoml.api(route="/predict")  # type: ignore[untyped-decorator]
    async def predict(self, body: _Bytes, /) -> _Bytes:
        """Return the average of the members' probabilities (N, K), float32, for images (N, C, H, W), float32."""
        return await self._ensemble.answer(body)
