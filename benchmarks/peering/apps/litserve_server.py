"""LitServe with raw bytes in and out. Usage: python -m benchmarks.peering.apps.litserve_server PORT."""

from __future__ import annotations

import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray

from benchmarks.peering.apps.ensemble import Ensemble

_Images = NDArray[np.float32]


class EnsembleApi(litserve.LitAPI):  # type: ignore[misc]
    """The ensemble. Each worker process has its own."""

    def setup(self, device: str) -> None:
        """Open the members in the worker."""
        self._ensemble = Ensemble.from_environment()

    def decode_request(self, request: bytes) -> _Images:
        """Return the images of a request."""
        return self._ensemble.images_from_bytes(request)

    def predict(self, x: _Images) -> _Images:
        """Return the probabilities of the images of a request."""
        return self._ensemble.predict_blocking(x)

    def encode_response(self, output: _Images) -> Response:
        """Return the probabilities as bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")

    # LitServe gives these annotations to FastAPI; postponed ones would be strings.
    decode_request.__annotations__["request"] = Annotated[bytes, Body(media_type="application/octet-stream")]
    encode_response.__annotations__["return"] = Response


if __name__ == "__main__":
    # "For CPU, set to the number of cores"; a queue of ZeroMQ is for "hundreds of requests per second".
    server = litserve.LitServer(EnsembleApi(), accelerator="cpu", workers_per_device=2, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
