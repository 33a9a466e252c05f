"""Compare outputs with the expected ones, in units of max(1, largest absolute expected value)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from defensemble_repository.averaging import difference_scale

from ..errors import ExportError, VerificationError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Difference:
    """The largest difference between outputs and the expected ones.

    `relative` is in units of `scale`, max(1, largest absolute expected value); `image` is the index of the worst image in its batch.
    """

    relative: float
    scale: float
    image: int


@dataclass(frozen=True)
class Comparison:
    """A comparison of two sources of outputs.

    Args:
        subject: What errors call the source under test.
        reference: What errors call the source of the expected outputs.
        consequence: What follows from a difference, such as "the plan is not kept".
        error: The class of the errors.
        not_finite: How to fix values of the subject that are not finite.

    Example:
        >>> plan = Comparison("the plan", "its graph", "the plan is not kept")
        >>> plan.check(plan.difference(got, expected, "2 images"), 1e-5, "logits", "2 images")
    """

    subject: str
    reference: str
    consequence: str
    error: type[ExportError] = VerificationError
    not_finite: str = ""

    def difference(self, got: Array, expected: Array, where: str) -> Difference:
        """Return the largest difference between outputs (N, ...) and the expected ones; other shapes and non-finite values raise."""
        if got.shape != expected.shape:
            raise self.error(
                f"{where}: {self.subject} returns the shape {got.shape}, but {self.reference} returns {expected.shape}; {self.consequence}"
            )
        for source, values, fix in ((self.reference, expected, ""), (self.subject, got, self.not_finite)):
            if not np.isfinite(values).all():
                raise self.error(f"{where}: {source} returns values that are not finite{fix}; {self.consequence}")
        scale = difference_scale(expected)
        by_image = np.abs(got.astype(np.float64) - expected).reshape(len(got), -1).max(axis=1) / scale
        worst = int(by_image.argmax())
        return Difference(float(by_image[worst]), scale, worst)

    def check(self, difference: Difference, allowed: float | None, quantity: str, where: str) -> None:
        """Check that a difference is within a limit.

        Args:
            difference: The difference.
            allowed: The limit, in units of the difference's scale. None allows any difference.
            quantity: What errors call the outputs, such as "logits".
            where: What errors call the images.

        Raises:
            ExportError: The difference exceeds the limit; the class is `error`.
        """
        if allowed is not None and difference.relative > allowed:
            raise self.error(
                f"{where}: {quantity} differ by {difference.relative * difference.scale:.3g} between {self.subject} and {self.reference} "
                f"(most in image {difference.image}); expected at most {allowed * difference.scale:.3g}; {self.consequence}"
            )

    def check_classes(self, same: Array, agreement: float, where: str, *, min_allowed: int = 1) -> None:
        """Raise if the share of images with the same class is below `agreement`.

        Below an agreement of 1, `min_allowed` images may always differ: the share of a few images means little.
        """
        different = int(np.count_nonzero(~same))
        allowed = 0 if agreement == 1 else max(min_allowed, int(len(same) * (1 - agreement) + 1e-9))
        if different > allowed:
            raise self.error(
                f"{where}: {different} of {len(same)} images get different classes from {self.subject} and {self.reference}; at least "
                f"{100 * agreement:g} % must get the same class; {self.consequence}"
            )


def same_classes(got: Array, expected: Array, margin: float) -> Array:
    """Return for each image of (N, K) whether it gets the expected class. If the two best values are within `margin`, both are right."""
    best = np.sort(expected, axis=1)
    same: Array = (got.argmax(1) == expected.argmax(1)) | (best[:, -1] - best[:, -2] <= margin)
    return same
