"""The comparison of answers with the expected ones, in one unit: max(1, largest absolute expected value)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from defensemble_repository.averaging import difference_scale

from ..errors import ExportError, VerificationError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """How far answers are from the expected ones at most.

    `relative` is in units of `scale`, max(1, largest absolute expected value); `image` is the position of the worst image in its batch.
    """

    relative: float
    scale: float
    image: int


@dataclass(frozen=True)
class Comparison:
    """Two sources of answers, as errors call them, and what follows where they differ.

    Example:
        >>> plan = Comparison("the plan", "its graph", "the plan is not kept")
        >>> plan.check(plan.difference(got, expected, "2 images"), 1e-5, "logits", "2 images")
    """

    subject: str
    reference: str
    consequence: str
    error: type[ExportError] = VerificationError
    # How to fix values that are not finite.
    not_finite: str = ""

    def difference(self, got: Array, expected: Array, where: str) -> Difference:
        """Measure how far answers (N, ...) are from the expected ones; other shapes and values that are not finite are refused."""
        if got.shape != expected.shape:
            raise self.error(
                f"{where}: {self.subject} answers shape {got.shape}, {self.reference} answers {expected.shape}; {self.consequence}"
            )
        for source, values, fix in ((self.reference, expected, ""), (self.subject, got, self.not_finite)):
            if not np.isfinite(values).all():
                raise self.error(f"{where}: {source} answers values that are not finite{fix}; {self.consequence}")
        scale = difference_scale(expected)
        by_image = np.abs(got.astype(np.float64) - expected).reshape(len(got), -1).max(axis=1) / scale
        worst = int(by_image.argmax())
        return Difference(float(by_image[worst]), scale, worst)

    def check(self, found: Difference, allowed: float | None, what: str, where: str) -> None:
        """Refuse a difference above what is allowed, in its own unit; None allows any."""
        if allowed is not None and found.relative > allowed:
            raise self.error(
                f"{where}: {what} differ by {found.relative * found.scale:.3g} between {self.subject} and {self.reference} (most in image "
                f"{found.image}), allowed is {allowed * found.scale:.3g}; {self.consequence}"
            )

    def check_classes(self, same: Array, agreement: float, where: str, *, least: int = 1) -> None:
        """Refuse a share of equal classes below `agreement`; below 1, `least` images may always differ: a share of few says too little."""
        others = int(np.count_nonzero(~same))
        allowed = 0 if agreement == 1 else max(least, int(len(same) * (1 - agreement) + 1e-9))
        if others > allowed:
            raise self.error(
                f"{where}: {others} of {len(same)} images get another class from {self.subject} than from {self.reference}, at least "
                f"{100 * agreement:g} % must keep theirs; {self.consequence}"
            )


def same_classes(got: Array, expected: Array, margin: float) -> Array:
    """Return for each image of (N, K) whether it gets the expected class; where the two best are within `margin`, either is right."""
    best = np.sort(expected, axis=1)
    same: Array = (got.argmax(1) == expected.argmax(1)) | (best[:, -1] - best[:, -2] <= margin)
    return same
