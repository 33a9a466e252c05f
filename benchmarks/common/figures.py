"""Statistics that all benchmarks compute from their rounds: ratios, spread, and figures with goals."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]


def round_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round, so that a temporary slowdown of the machine affects both sides."""
    return [our / their for our, their in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, minimum and maximum of the rounds, and the rounds themselves."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "rounds": [round(value, 4) for value in values],
    }


def percentiles(seconds: Iterable[float], unit: str = "") -> dict[str, Any]:
    """Return number, 50th and 99th percentile and maximum of times in milliseconds; None without times. `unit` is a suffix of the names."""
    times = [1000 * value for value in seconds]
    values = [round(float(value), 3) for value in (*np.percentile(times, (50, 99)), max(times))] if times else [None] * 3
    return {"n": len(times), **dict(zip((f"p50{unit}", f"p99{unit}", f"max{unit}"), values, strict=True))}


def at_most_figure(value: float | None, goal: float, unit: str = "") -> Figure:
    """Return a figure with an upper limit; the value None misses the goal."""
    return {"value": value, "goal": f"<= {goal:g}{unit}", "holds": value is not None and value <= goal}


def at_least_figure(value: float | None, goal: float, unit: str = "") -> Figure:
    """Return a figure with a lower limit; the value None misses the goal."""
    return {"value": value, "goal": f">= {goal:g}{unit}", "holds": value is not None and value >= goal}


def above_figure(value: float | None, goal: float, unit: str = "") -> Figure:
    """Return a figure that must exceed a limit; the value None misses the goal."""
    return {"value": value, "goal": f"> {goal:g}{unit}", "holds": value is not None and value > goal}


def zero_figure(count: int, *, measured: bool) -> Figure:
    """Return a figure that must be 0; it misses the goal if nothing was `measured`."""
    return {"value": count, "goal": "0", "holds": measured and count == 0}


def exit_status(figures: Mapping[str, Mapping[str, Any]]) -> int:
    """Return 0 if every figure meets its goal, else 1; also 1 without figures."""
    return 0 if figures and all(figure["holds"] for figure in figures.values()) else 1
