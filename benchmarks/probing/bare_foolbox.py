"""The boundary attack as people write it by hand: Foolbox at batch 1 on tritonclient, in several processes."""

from __future__ import annotations

import multiprocessing
import warnings
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray


def attack_images(url: str, model: str, images: NDArray[np.float32], labels: NDArray[np.int64], steps: int, processes: int) -> int:
    """Attack each image by itself, and return the number of images that were sent.

    Args:
        url: HOST:PORT of the server's HTTP endpoint.
        model: Name of the model.
        images: float32 (n, C, H, W) in [0, 1].
        labels: int64 (n,).
        steps: Steps of the attack.
        processes: Number of processes.
    """
    parts = [(url, model, images[number::processes], labels[number::processes], steps) for number in range(processes)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(_attack_part, parts))


def _attack_part(url: str, model: str, images: NDArray[np.float32], labels: NDArray[np.int64], steps: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        foolbox: Any = import_module("foolbox")
    from tritonclient import http

    server = http.InferenceServerClient(url)
    sent = 0

    def logits(batch: NDArray[Any]) -> NDArray[np.float32]:
        nonlocal sent
        sent += len(batch)
        tensor = http.InferInput("images", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(batch, np.float32))
        response = server.infer(model, [tensor], outputs=[http.InferRequestedOutput("probabilities")])
        probabilities: NDArray[np.float32] = response.as_numpy("probabilities")
        return probabilities

    attack = foolbox.attacks.BoundaryAttack(steps=steps)
    target = foolbox.models.NumPyModel(logits, bounds=(0, 1))
    for number in range(len(images)):
        np.random.seed(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            attack.run(target, images[number : number + 1], labels[number : number + 1])
    return sent
