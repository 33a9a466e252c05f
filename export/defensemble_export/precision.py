"""In which numbers an exported graph computes, and how far each form may answer otherwise than the network that it was made from."""

from __future__ import annotations

from dataclasses import dataclass

from ._errors import ExportError


@dataclass(frozen=True)
class Tolerance:
    """What every export of a precision must keep, and what it should reach, on real images.

    ``logits``: the largest difference of a logit, in units of max(1, largest |logit|). ``probabilities``: of a probability.
    ``agreement``: the least share of images that get the same class. ``goal_agreement`` and ``goal_accuracy_points`` (the largest loss of
    accuracy, in points) are reported where they are missed, and stop nothing. None: not asked for.
    """

    agreement: float
    logits: float | None = None
    probabilities: float | None = None
    goal_agreement: float | None = None
    goal_accuracy_points: float | None = None


# The one table; docs/export.md shows it, and a test compares them. fp32: float32 everywhere, and classes may differ only where the two best
# logits are closer than the tolerance. int8 below 0.9 means that the calibration has failed: trained networks reached 0.947 and more.
TOLERANCES = {
    "fp32": Tolerance(agreement=1.0, logits=1e-5),
    "fp16": Tolerance(agreement=0.999, probabilities=1e-2),
    "int8": Tolerance(agreement=0.9, goal_agreement=0.98, goal_accuracy_points=0.5),
}
PRECISIONS = tuple(TOLERANCES)


def checked_precision(precision: str) -> str:
    """Return ``precision`` where it is one that graphs are exported in.

    Raises:
        ExportError: it is another.
    """
    if not isinstance(precision, str) or precision not in TOLERANCES:
        raise ExportError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision
