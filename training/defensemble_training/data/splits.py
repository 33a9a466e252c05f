"""Which images are held out: by keys that follow from a text alone, so that a split never changes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..models.masks import uniform_keys

Labels = npt.NDArray[np.int64]


def stratified_test_part(labels: Labels, seed_text: str) -> npt.NDArray[np.bool_]:
    """Choose a fifth of the images of every class (rounded) for the test, by a text alone: bool (n,), True for the test part."""
    classes, sizes = np.unique(labels, return_counts=True)
    return _chosen(labels, classes, np.array([round(int(size) / 5) for size in sizes], dtype=np.int64), seed_text)


def stratified_choice(labels: Labels, count: int, seed_text: str) -> npt.NDArray[np.bool_]:
    """Choose exactly `count` images, 0 to n, as evenly over the classes as can be, by a text alone: bool (n,), True where chosen.

    Where classes cannot have equally many, which of them have one more follows from the text too.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    turn = np.argsort(uniform_keys(f"{seed_text}:classes", classes.size), kind="stable")
    quotas, left = np.zeros_like(sizes), count
    while left > 0:
        unfilled = turn[(quotas < sizes)[turn]]
        each = min(left // unfilled.size, int((sizes - quotas)[unfilled].min()))
        taking = unfilled if each else unfilled[:left]
        quotas[taking] += max(each, 1)
        left -= taking.size * max(each, 1)
    return _chosen(labels, classes, quotas, seed_text)


def _chosen(labels: Labels, classes: Labels, quotas: npt.NDArray[np.int64], seed_text: str) -> npt.NDArray[np.bool_]:
    keys = uniform_keys(seed_text, labels.size)
    chosen = np.zeros(labels.size, dtype=np.bool_)
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[members[np.argsort(keys[members], kind="stable")[:quota]]] = True
    return chosen
