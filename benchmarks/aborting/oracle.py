"""What is wrong with an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.plan import OUTPUTS
from benchmarks.common.answers import Array
from defensemble_repository.averaging import TOLERANCE, largest_difference


def mistake(answer: Mapping[str, NDArray[Any]], right: Mapping[str, Array], rows: NDArray[np.int64], wanted: Sequence[str]) -> str | None:
    """What is wrong with an answer about the images `rows`, from which the outputs `wanted` (none: all) were asked; None if nothing is."""
    if set(answer) != set(wanted or OUTPUTS):
        return f"asked for {', '.join(wanted) or 'all outputs'}, got {', '.join(answer) or 'none'}"
    for name, values in answer.items():
        theirs = right[name][rows].reshape(len(rows), -1)
        if values.size != theirs.size or len(values) != len(rows):
            return f"{name} has shape {values.shape} for {len(rows)} images"
        if (difference := largest_difference(values.reshape(theirs.shape), theirs)) > TOLERANCE:
            return f"{name} differs by {difference:.3g}"
    return None
