"""What all benchmarks make of their rounds: ratios, spread, and figures that hold or do not."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]


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


def percentiles(seconds: Iterable[float], unit: str = "") -> dict[str, Any]:
    """Number, 50th and 99th percentile and maximum of times, in milliseconds; None where there are none. `unit` ends the names."""
    times = [1000 * one for one in seconds]
    values = [round(float(one), 3) for one in (*np.percentile(times, (50, 99)), max(times))] if times else [None] * 3
    return {"n": len(times), **dict(zip((f"p50{unit}", f"p99{unit}", f"max{unit}"), values, strict=True))}


def at_most(value: float | None, goal: float, unit: str = "") -> Figure:
    """A figure that must not be above its goal; None does not hold."""
    return {"value": value, "goal": f"<= {goal:g}{unit}", "holds": value is not None and value <= goal}


def zero(count: int, *, measured: bool) -> Figure:
    """A count that must be 0, of something that was `measured` at all."""
    return {"value": count, "goal": "0", "holds": measured and count == 0}


def exit_status(figures: Mapping[str, Mapping[str, Any]]) -> int:
    """0 where every figure holds, else 1; 1 too where there are none."""
    return 0 if figures and all(figure["holds"] for figure in figures.values()) else 1
