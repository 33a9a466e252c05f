"""The service that people write by hand: ONNX Runtime behind FastAPI, raw bytes in and out. `uvicorn` imports `app`.

The environment variable `MEMBERS` lists the members' ONNX files, separated by colons.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from fastapi import FastAPI, Request, Response


def _session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


sessions = [_session(path) for path in os.environ["MEMBERS"].split(":")]
image_shape = sessions[0].get_inputs()[0].shape[1:]
pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Return the average of the members' probabilities (N, K), float32, for images (N, C, H, W), float32."""
    images = np.frombuffer(await request.body(), np.float32).reshape(-1, *image_shape)
    loop = asyncio.get_running_loop()
    runs = [loop.run_in_executor(pool, session.run, ["logits"], {"images": images}) for session in sessions]
    logits = np.stack([outputs[0] for outputs in await asyncio.gather(*runs)])
    exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=2, keepdims=True)).mean(axis=0)
    return Response(probabilities.tobytes(), media_type="application/octet-stream")
