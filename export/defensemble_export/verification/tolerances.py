"""The precisions of exported graphs, and how far the outputs of each may differ from those of the original network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from defensemble_repository.onnx_metadata import CLASS_NAMES, FUSED_MEMBERS, PRECISION

from ..errors import ExportError
from ..graphs.precision import computed_precision
from ..graphs.traversal import metadata_of


@dataclass(frozen=True)
class Tolerance:
    """The limits and goals of a precision, on real images. An export that exceeds a limit fails; a missed goal is only reported.

    Args:
        agreement: Limit: least share of images that get the same class.
        logits: Limit: largest difference of a logit, in units of max(1, largest |logit|). None: no limit.
        probabilities: Limit: largest difference of a probability. None: no limit.
        goal_agreement: Goal: least share of images that get the same class. None: no goal.
        goal_accuracy_points: Goal: largest loss of accuracy, in percentage points. None: no goal.
    """

    agreement: float
    logits: float | None = None
    probabilities: float | None = None
    goal_agreement: float | None = None
    goal_accuracy_points: float | None = None


# docs/how-to/export.md shows this table, and a test compares them. fp32 computes in float32 everywhere, so classes may differ only if the
# two best logits are closer than the tolerance. An int8 agreement below 0.9 means a failed calibration: trained networks reached 0.947 and
# more.
TOLERANCES = {
    "fp32": Tolerance(agreement=1.0, logits=1e-5),
    "fp16": Tolerance(agreement=0.999, probabilities=1e-2),
    "int8": Tolerance(agreement=0.9, goal_agreement=0.98, goal_accuracy_points=0.5),
}
# From the most exact to the least.
PRECISIONS = tuple(TOLERANCES)


def checked_precision(precision: str) -> str:
    """Return `precision`, or raise an ExportError if it is not one of `PRECISIONS`."""
    if not isinstance(precision, str) or precision not in TOLERANCES:
        raise ExportError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def lowest_precision(precisions: Iterable[str]) -> str:
    """Return the least exact of `precisions`."""
    return max(precisions, key=PRECISIONS.index)


def precision_of(model: onnx.ModelProto, stated: str | None) -> str | None:
    """Return the precision of an exported graph: the lower of what it computes in and what its metadata contain.

    Args:
        model: The graph.
        stated: The precision in the model's configuration. It counts for a float32 graph without the metadata of an export.
    """
    metadata = metadata_of(model)
    recorded = metadata.get(PRECISION, "fp32")
    if recorded not in TOLERANCES:
        return recorded
    precision = lowest_precision((recorded, computed_precision(model)))
    return precision if precision != "fp32" or (CLASS_NAMES in metadata and FUSED_MEMBERS not in metadata) else stated
