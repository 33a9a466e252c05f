"""The service that people write by hand: ONNX Runtime behind FastAPI, raw bytes in and out. `uvicorn` imports `app`."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from benchmarks.peering.apps.ensemble import Ensemble

ensemble = Ensemble.from_environment()
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Return the average of the members' probabilities (N, K), float32, for images (N, C, H, W), float32."""
    return Response(await ensemble.answer(await request.body()), media_type="application/octet-stream")
