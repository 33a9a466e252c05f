"""Uncertainty as a detector: does entropy or mutual information separate perturbed images from clean ones, and wrong from right?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..results.statistics import Auroc, auroc, rejection_curve
from .base import CLEAN

MEASURES = ("entropy", "mutual_information")


@dataclass(frozen=True)
class Detector:
    """One measure of uncertainty under one condition.

    Attributes:
        auroc: Clean against perturbed images; None for the clean condition, and without images on one side.
        rejection: (share rejected, accuracy of the rest) under the condition, the most uncertain images first.

    Example:
        >>> detector(uncertainty, "sigma 8", correct, uncertainty["sigma 8"]).auroc.value
    """

    auroc: Auroc | None
    rejection: list[tuple[float, float]] = field(repr=False)

    def json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {"auroc": None if self.auroc is None else self.auroc.json(), "rejection": self.rejection}


def detector(
    measured: Mapping[str, NDArray[np.float64]], condition: str, correct: NDArray[np.bool_], seen: NDArray[np.float64] | None = None
) -> Detector:
    """Return how well one measure of uncertainty detects perturbed and misclassified images.

    Args:
        measured: float64 (n,) by condition, NaN where not measured.
        condition: Name of the condition.
        correct: bool (n,): images that are classified correctly under the condition.
        seen: float64 (n,): the measure of what the target receives for each image; None: that of the condition. Under a query attack,
            images without an adversarial example stay clean.
    """
    values = measured[condition]
    return Detector(
        auroc(measured[CLEAN], values) if condition != CLEAN and CLEAN in measured else None,
        rejection_curve(values if seen is None else seen, correct),
    )
