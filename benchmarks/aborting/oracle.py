"""The right answers, by numpy in float64 from each member's own logits: no code that is being measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.plan import OUTPUTS
from defensemble_repository.averaging import TOLERANCE, averages_by_numpy

Array = NDArray[np.float64]


def expected(logits: Array) -> dict[str, Array]:
    """All outputs of an ensemble with equal weights that averages probabilities, from its members' logits (M, P, K) for P images."""
    return averages_by_numpy([*logits], "probabilities", [1.0] * len(logits))


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
