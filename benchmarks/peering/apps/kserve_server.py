"""KServe's `ModelServer` with the protocol's binary extension.

Usage: python -m benchmarks.peering.apps.kserve_server --http_port PORT --grpc_port PORT --enable_latency_logging false
"""

from __future__ import annotations

from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

from benchmarks.peering.apps.ensemble import Ensemble


class EnsembleModel(Model):  # type: ignore[misc]
    """The ensemble. The coroutine `predict` does not block the server's event loop."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.load()

    def load(self) -> bool:
        """Open the members."""
        self._ensemble = Ensemble.from_environment()
        self.ready = True
        return self.ready

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        """Return the probabilities of the input `images`."""
        probabilities = await self._ensemble.predict(payload.inputs[0].as_numpy())
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(
            payload.id or "none",
            self.name,
            [output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


if __name__ == "__main__":
    ModelServer(grace_period=1).start([EnsembleModel("ensemble")])
