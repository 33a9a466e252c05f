"""Shared code of the probes: targets, labelled images, and calls in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defensemble_images import image_problem

from .._client.client import Client
from .._exceptions import InputError, ServiceError

Target = Callable[[NDArray[np.float32]], NDArray[np.intp]]
"""A function that returns the classes (n,) of images, float32 (n, C, H, W) in [0, 1]."""


def target_from_model(client: Client, model: str | None = None) -> Target:
    """Return a target that calls a served model.

    Args:
        client: A client of the server.
        model: Name of the model; None for the client's own.
    """

    def predict_classes(images: NDArray[np.float32]) -> NDArray[np.intp]:
        return client.predict(images, model=model).indices

    return predict_classes


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images: float32 (n, C, H, W) in [0, 1], and class indices (n,)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        problem = image_problem(self.images)
        if problem is not None:
            raise InputError(problem)
        if self.labels.shape != (len(self.images),) or self.labels.dtype.kind not in "iu":
            raise InputError(f"labels must be {len(self.images)} integers; got {self.labels.dtype} of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels, in order. The same digest means the same images in the same order."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images, "<f4").data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


class TargetRunner:
    """Call targets in batches, count the images, and stop calling a target that failed.

    Attributes:
        queries: Number of images sent to each target.
        failures: Why targets failed, by name.
    """

    def __init__(self, targets: dict[str, Target], batch_size: int, on_batch: Callable[[int], None] | None = None) -> None:
        if not targets:
            raise InputError("no targets to probe: pass at least one")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self._targets = targets
        self._batch_size = batch_size
        self._on_batch = on_batch
        self.queries = dict.fromkeys(targets, 0)
        self.failures: dict[str, str] = {}

    def predict(self, name: str, images: NDArray[np.float32]) -> NDArray[np.intp] | None:
        """Return the classes (n,) that a target assigns to images, or None if the target has failed (see `failures`).

        Args:
            name: Name of the target.
            images: float32 (n, C, H, W) in [0, 1].

        Raises:
            InputError: The target does not accept these images, or does not return one class for each.
        """
        if name in self.failures:
            return None
        results = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            try:
                classes = np.asarray(self._targets[name](batch))
            except ServiceError as error:
                self.failures[name] = f"{type(error).__name__}: {error}"
                return None
            if classes.shape != (len(batch),) or classes.dtype.kind not in "iu":
                raise InputError(f"target {name!r} must return {len(batch)} class indices; got {classes.dtype} of shape {classes.shape}")
            self.queries[name] += len(batch)
            results.append(classes)
            if self._on_batch is not None:
                self._on_batch(len(batch))
        return np.concatenate(results).astype(np.intp)
