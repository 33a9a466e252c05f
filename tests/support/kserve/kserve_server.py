"""KServe's Python `ModelServer` with linear classifiers by numpy; run in an environment of its own.

Usage: python kserve_server.py WEIGHTS.npy MODELS.json HTTP_PORT GRPC_PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from grpc import aio  # type: ignore[import-untyped]
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput


class LinearClassifier(Model):  # type: ignore[misc]
    """One output, `logits` or `probabilities`. Images of several times 8 x 8 are averaged down to that.

    `logits` come in the form that the request asks for; `probabilities` as numbers, also where bytes were requested.
    """

    def __init__(self, name: str, weights: np.ndarray[Any, Any], output: str, metadata: dict[str, Any]) -> None:
        super().__init__(name)
        self._weights, self._output, self._metadata = weights, output, metadata
        self.load()

    def get_input_types(self) -> list[dict[str, Any]]:
        return list(self._metadata.get("inputs", []))

    def get_output_types(self) -> list[dict[str, Any]]:
        return list(self._metadata.get("outputs", []))

    def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        if self.name == "broken":
            raise RuntimeError("a defect of the model")
        images = payload.inputs[0].as_numpy()
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8:
            raise InvalidInput(f"expected images of 3 channels and a multiple of 8 x 8, got {list(images.shape)}")
        count, _, height, width = images.shape
        small = images.reshape(count, 3, 8, height // 8, 8, width // 8).mean(axis=(3, 5))
        scores = small.reshape(count, -1) @ self._weights
        if self._output == "probabilities":
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = powers / powers.sum(axis=1, keepdims=True)
        output = InferOutput(self._output, list(scores.shape), "FP32", scores.ravel().tolist())
        identifier = payload.id or "none"  # the server cannot send a response without one
        if self._output == "probabilities":
            return InferResponse(identifier, self.name, [output])
        return InferResponse(
            identifier, self.name, [output], use_binary_outputs=payload.use_binary_outputs, requested_outputs=payload.request_outputs
        )


def listen_on_loopback() -> None:
    """`ModelServer` has no option for its address, and listens on all of them."""
    configure, create_server = uvicorn.Config.__init__, aio.server

    def configure_on_loopback(self: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        configure(self, *arguments, **(options | {"host": "127.0.0.1"}))

    def server_on_loopback(*arguments: Any, **options: Any) -> aio.Server:
        server = create_server(*arguments, **options)
        add_port = server.add_insecure_port
        server.add_insecure_port = lambda address: add_port("127.0.0.1:" + address.rpartition(":")[2])
        return server

    uvicorn.Config.__init__ = configure_on_loopback  # type: ignore[method-assign]
    aio.server = server_on_loopback


if __name__ == "__main__":
    _, weights_path, models_path, http_port, grpc_port = sys.argv
    listen_on_loopback()
    weights = np.load(weights_path)
    models = [
        LinearClassifier(name, weights, model["output"], model["metadata"])
        for name, model in json.loads(Path(models_path).read_text()).items()
    ]
    asyncio.set_event_loop(asyncio.new_event_loop())
    ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), grace_period=1).start(models)
