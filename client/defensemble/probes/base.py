"""What all probes share: calling targets in batches, and checks of what goes in and comes out."""

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
"""Anything that returns the classes, (n,), of images, float32 (n, C, H, W) in [0, 1]."""


def served(client: Client, model: str | None = None) -> Target:
    """A served model as a target."""

    def classes(images: NDArray[np.float32]) -> NDArray[np.intp]:
        return client.predict(images, model=model).indices

    return classes


@dataclass(frozen=True)
class Data:
    """Labelled images: float32 (n, C, H, W) in [0, 1], and class indices (n,)."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        fault = image_problem(self.images)
        if fault is not None:
            raise InputError(fault)
        if self.labels.shape != (len(self.images),) or self.labels.dtype.kind not in "iu":
            raise InputError(f"labels must be {len(self.images)} integers, got {self.labels.dtype} of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and labels, in order: the same digest, the same images in the same order."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images, "<f4").data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


class TargetRunner:
    """Asks targets in batches, counts images asked, and stops asking a target that failed."""

    def __init__(self, targets: dict[str, Target], batch_size: int, on_batch: Callable[[int], None] | None = None) -> None:
        if not targets:
            raise InputError("there are no targets to probe: pass at least one")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self._targets = targets
        self._batch_size = batch_size
        self._on_answer = on_batch
        self.queries = dict.fromkeys(targets, 0)
        self.failures: dict[str, str] = {}

    def classes(self, name: str, images: NDArray[np.float32]) -> NDArray[np.intp] | None:
        """A target's classes of the images, (n,); None where the target failed, now or before (see `failures`).

        Raises:
            InputError: The target does not take these images, or answers something else than one class for each.
        """
        if name in self.failures:
            return None
        answers = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            try:
                answer = np.asarray(self._targets[name](batch))
            except ServiceError as error:
                self.failures[name] = f"{type(error).__name__}: {error}"
                return None
            if answer.shape != (len(batch),) or answer.dtype.kind not in "iu":
                raise InputError(f"target {name!r} must answer {len(batch)} class indices, got {answer.dtype} of shape {answer.shape}")
            self.queries[name] += len(batch)
            answers.append(answer)
            if self._on_answer is not None:
                self._on_answer(len(batch))
        return np.concatenate(answers).astype(np.intp)
