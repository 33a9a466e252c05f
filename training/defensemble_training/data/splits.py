"""Split datasets by keys that depend only on a seed text, so that a split never changes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..models.masks import uniform_keys

Labels = npt.NDArray[np.int64]


def stratified_test_part(labels: Labels, seed_text: str) -> npt.NDArray[np.bool_]:
    """Choose a fifth of the images of each class (rounded) as the test part. Returns bool (n,), True for test images."""
    classes, sizes = np.unique(labels, return_counts=True)
    return _choose(labels, classes, np.array([round(int(size) / 5) for size in sizes], dtype=np.int64), seed_text)


def stratified_choice(labels: Labels, count: int, seed_text: str) -> npt.NDArray[np.bool_]:
    """Choose exactly `count` images (0 to n), balanced over the classes. Returns bool (n,), True for chosen images.

    If the classes cannot have equal numbers, the seed text also determines which classes have one more.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    class_order = np.argsort(uniform_keys(f"{seed_text}:classes", classes.size), kind="stable")
    quotas, remaining = np.zeros_like(sizes), count
    while remaining > 0:
        unfilled = class_order[(quotas < sizes)[class_order]]
        each = min(remaining // unfilled.size, int((sizes - quotas)[unfilled].min()))
        growing = unfilled if each else unfilled[:remaining]
        quotas[growing] += max(each, 1)
        remaining -= growing.size * max(each, 1)
    return _choose(labels, classes, quotas, seed_text)


def _choose(labels: Labels, classes: Labels, quotas: npt.NDArray[np.int64], seed_text: str) -> npt.NDArray[np.bool_]:
    keys = uniform_keys(seed_text, labels.size)
    is_chosen = np.zeros(labels.size, dtype=np.bool_)
    for label, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(labels == label)
        is_chosen[rows[np.argsort(keys[rows], kind="stable")[:quota]]] = True
    return is_chosen
