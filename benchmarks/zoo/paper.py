"""Known figures of Table 2 of the paper (arXiv 1911.08432), and the planned networks of the paper's width.

In percent, as (clean, FGSM, PGD). Unknown figures are None.
"""

from __future__ import annotations

from collections.abc import Mapping

Figures = tuple[float | None, float | None, float | None]
MISSING: Figures = (None, None, None)

STANDARD: Figures = (95.03, 55.92, 15.96)
ADVERSARIAL_TRAINING: Figures = (87.14, 77.10, 78.10)
# Goals, as fractions: lower limits for a standard network of the zoo, and for a defective one of the paper's width.
STANDARD_GOAL = 0.85
CLEAN_GOAL = 0.91
PGD_GOAL = 0.781  # that of adversarial training

GPU_ROWS: Mapping[str, Figures] = {
    "standard": STANDARD,
    "source: a second standard": MISSING,
    "defective, keep 0.1": MISSING,
    "adversarial training (PGD-7)": ADVERSARIAL_TRAINING,
    "defective, keep 0.3": MISSING,
    "defective, keep 0.5": MISSING,
    "four more masks of keep 0.1, and their average": MISSING,
    "SpatialDropout": (95.44, 52.11, 12.98),
    "DropBlock": (95.38, 56.27, 14.69),
    "label smoothing": MISSING,
    "Table 5: bottom": MISSING,
    "Table 5: top": MISSING,
    "Table 5: channel": MISSING,
    "Table 5: shared": MISSING,
}
"""Full-width ResNet-18s that need a GPU, in the planned order of training."""

OTHERS: Mapping[str, Figures] = {
    "BPFC": (82.30, 75.52, 77.07),
    "TLA": MISSING,
    "Wang & Yu": MISSING,
    "Yuan & He": MISSING,
    "Defective CNN": MISSING,
}
"""Other rows of the paper's table, which this project does not train."""
