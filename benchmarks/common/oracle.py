"""Check a response of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from defensemble_repository.averaging import TOLERANCE, largest_difference

OUTPUTS = ("probabilities", "member_probabilities", "entropy", "mutual_information")


def find_mistake(
    response: Mapping[str, NDArray[Any]], expected: Mapping[str, Array], rows: NDArray[np.int64], outputs: Sequence[str]
) -> str | None:
    """Return what is wrong with a response for the images `rows` and the requested `outputs` (none: all), or None."""
    if set(response) != set(outputs or OUTPUTS):
        return f"requested {', '.join(outputs) or 'all outputs'}, got {', '.join(response) or 'none'}"
    for name, values in response.items():
        expected_values = expected[name][rows].reshape(len(rows), -1)
        if values.size != expected_values.size or len(values) != len(rows):
            return f"{name} has shape {values.shape} for {len(rows)} images"
        if (difference := largest_difference(values.reshape(expected_values.shape), expected_values)) > TOLERANCE:
            return f"{name} differs by {difference:.3g}"
    return None
