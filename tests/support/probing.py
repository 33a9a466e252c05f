"""Targets, interruptions and comparisons for tests of probes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings

from defensemble.probes import FunctionTarget, LabelledImages, Preview, ProbeOutcome, Progress
from tests.support.tiny import Array, images, logits, softmax, weights

LABELS = logits(1, images(40)).argmax(axis=1)
DATA = LabelledImages(images(40), LABELS)
FEW = LabelledImages(images(12), LABELS[:12])
FEWER_EXAMPLES = settings(max_examples=settings().max_examples // 5)  # of probes, which take some milliseconds each


class Linear:
    """The network `logits(seed)` as a function, which counts the images and keeps the batches that it gets.

    Args:
        seed: Seed of the network.
        fails_at: Number of the call, from 0, from which on it raises `error`.
        error: What it raises.
        returns_probabilities: Whether it returns probabilities instead of classes.
    """

    def __init__(
        self, seed: int = 1, *, fails_at: int | None = None, error: BaseException | None = None, returns_probabilities: bool = False
    ) -> None:
        self.batches: list[Array] = []
        self._weights, self._fails_at, self._error = weights(seed).astype(np.float64), fails_at, error
        self._returns_probabilities = returns_probabilities

    @property
    def count(self) -> int:
        """The number of images so far."""
        return sum(map(len, self.batches))

    def __call__(self, batch: Array) -> Array:
        self.batches.append(batch.copy())
        if self._error is not None and self._fails_at is not None and len(self.batches) > self._fails_at:
            raise self._error
        # One image after the other, so that the sums do not depend on the batch.
        scores = np.stack([image.ravel().astype(np.float64) @ self._weights for image in batch])
        return softmax(scores).astype(np.float32) if self._returns_probabilities else scores.argmax(axis=1)


def linear(name: str, seed: int, *, max_batch: int = 16, **options: Any) -> FunctionTarget:
    """Return `Linear` as a target."""
    return FunctionTarget(name, Linear(seed, **options), max_batch=max_batch)


class InterruptedByTestError(Exception):
    """What `Interrupting` raises."""


class Interrupting(Progress):
    """Keeps what it gets, and raises an error at one of its calls about images.

    Args:
        at: Number of the call, from 0; None for none.
    """

    def __init__(self, at: int | None = None) -> None:
        self.previews: list[Preview] = []
        self.images: list[tuple[str, int, int]] = []
        self._at = at

    def on_preview(self, preview: Preview) -> None:
        self.previews.append(preview)

    def on_images(self, target: str, done: int, total: int) -> None:
        self.images.append((target, done, total))
        if self._at is not None and len(self.images) > self._at:
            raise InterruptedByTestError


def result(outcome: ProbeOutcome) -> dict[str, Any]:
    """Return what an interruption must not change: everything but times, and of the queries only `counted`."""
    report = outcome.json()
    del report["duration_s"]
    for target in report["targets"]:
        target["queries"] = target["queries"]["counted"]
    return report


def assert_balanced(outcome: ProbeOutcome) -> None:
    """Assert that `sent` is the sum of the other counts, none of which is negative."""
    for target in outcome.targets:
        queries = target.queries
        parts = [queries.counted, queries.verification, queries.sanity, queries.retried, queries.repeated]
        assert queries.sent == sum(parts)
        assert min(parts) >= 0, queries
