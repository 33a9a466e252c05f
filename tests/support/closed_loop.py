"""Callers that ask an ensemble in a closed loop, and check every answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import urllib3

from defensemble_server import Server
from tests.support import tiny


@dataclass
class Load:
    """What callers have seen, by the time at which each call began."""

    right: list[float] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Load({len(self.right)} right, {len(self.wrong)} wrong, {len(self.failed)} failed)"


@contextmanager
def load_on(server: Server, images: tiny.Array, expected: tiny.Array, *, callers: int = 4, model: str = "ensemble") -> Iterator[Load]:
    """Let callers ask for the probabilities of the same images again and again until the end of the context.

    Args:
        server: The server.
        images: The images (N, C, H, W).
        expected: The right probabilities.
        callers: The number of callers.
        model: The ensemble.
    """
    load, over = Load(), threading.Event()
    inputs = [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}]
    body = {"inputs": inputs, "outputs": [{"name": "probabilities"}]}

    def call_again_and_again() -> None:
        with urllib3.PoolManager() as pool:
            while not over.is_set():
                begin = time.time()
                try:
                    answer = pool.request("POST", f"{server.http_url}/v2/models/{model}/infer", json=body, retries=False, timeout=30)
                except urllib3.exceptions.HTTPError:
                    load.failed.append(begin)
                    time.sleep(0.01)
                    continue
                if answer.status != 200:
                    load.failed.append(begin)
                    continue
                got = np.array([np.nan if value is None else value for value in answer.json()["outputs"][0]["data"]])
                is_right = bool(np.abs(got - expected.ravel()).max() < 1e-5)
                (load.right if is_right else load.wrong).append(begin)

    threads = [threading.Thread(target=call_again_and_again) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        over.set()
        for thread in threads:
            thread.join()
