"""The right answers, by numpy in float64 from each member's own logits: no code of the product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.plan import OUTPUTS
from benchmarks.common.answers import TOLERANCE, Array, softmax


def entropy(probabilities: Array) -> Array:
    """Over the last axis, in nats."""
    nats: Array = -np.sum(probabilities * np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)), axis=-1)
    return nats


def expected(logits: Array) -> dict[str, Array]:
    """All outputs of an ensemble with equal weights that averages probabilities, from its members' logits (M, P, K) for P images."""
    by_member = softmax(logits)
    mean = by_member.mean(axis=0)
    return {
        "probabilities": mean,
        "member_probabilities": by_member.transpose(1, 0, 2),
        "entropy": entropy(mean),
        "mutual_information": entropy(mean) - entropy(by_member).mean(axis=0),
    }


def mistake(answer: Mapping[str, NDArray[Any]], right: Mapping[str, Array], rows: NDArray[np.int64], wanted: Sequence[str]) -> str | None:
    """What is wrong with an answer about the images `rows`, from which the outputs `wanted` (none: all) were asked; None if nothing is."""
    if set(answer) != set(wanted or OUTPUTS):
        return f"asked for {', '.join(wanted) or 'all outputs'}, got {', '.join(answer) or 'none'}"
    for name, values in answer.items():
        theirs = right[name][rows].reshape(len(rows), -1)
        if values.size != theirs.size or len(values) != len(rows):
            return f"{name} has shape {values.shape} for {len(rows)} images"
        difference = np.abs(values.reshape(theirs.shape).astype(np.float64) - theirs).max()
        if not difference <= TOLERANCE:  # NaN is wrong too
            return f"{name} differs by {difference:.3g}"
    return None
