"""What all benchmarks make of their rounds: ratios, spread, and whether the figures hold."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def round_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that a machine that is slower for a while is slower for both."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest and largest of the rounds, and the rounds themselves."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": [round(value, 4) for value in values],
    }


def exit_status(figures: Mapping[str, Mapping[str, Any]]) -> int:
    """0 where every figure holds, else 1; 1 too where there are none."""
    return 0 if figures and all(figure["holds"] for figure in figures.values()) else 1
