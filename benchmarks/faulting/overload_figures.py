"""The figures of an overload. The functions are pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure, at_most_figure, zero_figure

GOODPUT_RATIO, RECOVERY_S, MEMORY_MB = 0.8, 2.0, 32.0
PROXY, DIRECT = "proxy", "direct"
_UNANSWERED = "DeadlineExceededError"


def goodput_ratio(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the goodput of the last row as a fraction of the largest; None if a step was invalid or nothing was good."""
    goodputs = [row["goodput_per_s"] for row in rows]
    if None in goodputs or not max(goodputs):
        return None
    ratio: float = goodputs[-1] / max(goodputs)
    return ratio


def overload_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Return the figures of each protocol, all through the proxy: the median of the rounds for goodput, the worst round for the others.

    Args:
        records: Results of `measure_overload`, the last row of each path at the highest rate.
    """
    figures: dict[str, Figure] = {}
    for protocol in dict.fromkeys(record["protocol"] for record in records):
        own = [record for record in records if record["protocol"] == protocol]
        paths = [record[PROXY] for record in own]
        last, rows = [path["rows"][-1] for path in paths], [row for path in paths for row in path["rows"]]
        ratios = [path["goodput_ratio"] for path in paths]
        bound_ms = 2 * own[0]["objective_ms"]
        measured = all(row["answered"] > 0 for row in rows)
        figures |= {
            f"{protocol}.goodput_ratio": at_least_figure(None if None in ratios else round(statistics.median(ratios), 3), GOODPUT_RATIO),
            f"{protocol}.p99_ms": at_most_figure(_worst([row["p99_ms"] for row in last]), bound_ms, " ms"),
            f"{protocol}.memory_gained_mb": at_most_figure(_worst([memory_gained_mb(path["rows"]) for path in paths]), MEMORY_MB, " MB"),
            f"{protocol}.recovery_s": at_most_figure(_worst([row["recovery_s"] for row in last]), RECOVERY_S, " s"),
            f"{protocol}.unanswered": zero_figure(sum(row["failures"].get(_UNANSWERED, 0) for row in rows), measured=measured),
            f"{protocol}.deaths": zero_figure(sum(row["deaths"] for row in rows), measured=measured),
        }
    return figures


def memory_gained_mb(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how far the largest memory of Triton is above that before the first step, in MB; None if it was dead then."""
    before = rows[0]["pss_before_bytes"]
    return None if before is None else (max(row["pss_peak_bytes"] for row in rows) - before) / 1e6


def _worst(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), 3) if known and len(known) == len(values) else None
