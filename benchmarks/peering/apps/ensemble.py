"""The members and their average, which every application shares. It needs only numpy and ONNX Runtime.

The environment variable `MEMBERS` lists the members' ONNX files, separated by colons; `POOL_THREADS` is the number of threads of a process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.common.averaging import average

_Images = NDArray[np.float32]


def split_batch(outputs: _Images, inputs: Sequence[_Images]) -> list[_Images]:
    """Return the rows of `outputs` of each of `inputs`, which were joined in this order."""
    return np.split(outputs, np.cumsum([len(images) for images in inputs])[:-1])


class Ensemble:
    """Sessions with one thread each, run by a pool.

    Example:
        >>> ensemble = Ensemble.from_environment()
        >>> body = await ensemble.answer(body)
    """

    def __init__(self, paths: Sequence[str], threads: int) -> None:
        self._sessions = [_session(path) for path in paths]
        self._image_shape = self._sessions[0].get_inputs()[0].shape[1:]
        self._pool = ThreadPoolExecutor(threads)

    @classmethod
    def from_environment(cls) -> Ensemble:
        """Open the members of the variable `MEMBERS`, with `POOL_THREADS` threads."""
        return cls(os.environ["MEMBERS"].split(":"), int(os.environ["POOL_THREADS"]))

    async def predict(self, images: _Images) -> _Images:
        """Return the average of the members' probabilities (N, K) for images (N, C, H, W), without blocking the event loop."""
        loop = asyncio.get_running_loop()
        runs = [loop.run_in_executor(self._pool, session.run, ["logits"], {"images": images}) for session in self._sessions]
        return average([outputs[0] for outputs in await asyncio.gather(*runs)])

    async def answer(self, body: bytes) -> bytes:
        """Return the probabilities for images, both as the bytes of float32 arrays."""
        return (await self.predict(self.images_from_bytes(body))).tobytes()

    async def answer_many(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Return what `answer` returns for each of several requests, which run as one batch."""
        images = [self.images_from_bytes(body) for body in bodies]
        return [part.tobytes() for part in split_batch(await self.predict(np.concatenate(images)), images)]

    def predict_blocking(self, images: _Images) -> _Images:
        """Return what `predict` returns, outside of an event loop."""
        runs = [self._pool.submit(session.run, ["logits"], {"images": images}) for session in self._sessions]
        return average([run.result()[0] for run in runs])

    def images_from_bytes(self, body: bytes) -> _Images:
        """Return the images (N, C, H, W) whose bytes are a request's body."""
        return np.frombuffer(body, np.float32).reshape(-1, *self._image_shape)


def _session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
