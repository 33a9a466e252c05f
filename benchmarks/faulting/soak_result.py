"""The result of a soak. The functions are pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.common.figures import Figure, at_most_figure, zero_figure
from benchmarks.faulting.soaking import SoakRun

BLOCKS = 10
"""Blocks of samples in the second half, whose means give the slope: samples that follow each other are not independent."""
_MEGABYTE = 1e6
# What may be gained in the second half, at the upper end of the 95 % interval, and what it is divided by.
BOUNDS: Mapping[str, tuple[float, float, str]] = {
    "pss_bytes": (10.0, _MEGABYTE, "MB of Triton's memory (PSS)"),
    "guard_pss_bytes": (5.0, _MEGABYTE, "MB of guard's and supervisor's memory (PSS)"),
    "open_files": (5.0, 1.0, "open files of Triton"),
    "threads": (2.0, 1.0, "threads of Triton"),
    "shared_memory": (0.5, 1.0, "entries of `/dev/shm`"),
}


def build_soak_result(run: SoakRun) -> dict[str, Any]:
    """Return a soak as JSON, with its figures."""
    trends = {name: gain([sample.at for sample in run.samples], _values(run, name), scale) for name, (_, scale, _) in BOUNDS.items()}
    result = {
        "seconds": round(run.ended - run.began, 1),
        "calls": run.verdict.calls,
        "wrong": _texts([*run.verdict.wrong, *run.verdict.stale]),
        "failed": _texts(run.verdict.failed),
        "edits": run.edits,
        "failed_edits": _texts(run.failed_edits),
        "lost_edits": run.lost_edits,
        "aborts": len(run.aborts) - run.plain_calls - run.refused_aborts,
        "refused_aborts": run.refused_aborts,
        "probe_rounds": len(run.probes),
        "failed_probes": _texts([failure for _, failure in run.probes if failure]),
        "deaths": sum(event.is_fault for event in run.events),
        "left_behind": run.left,
        "trends": trends,
        "samples": {name: [round(value / scale, 3) for value in _values(run, name)] for name, (_, scale, _) in BOUNDS.items()},
        "sampled_at_s": [round(sample.at - run.began, 1) for sample in run.samples],
    }
    return {**result, "figures": soak_figures(result)}


def soak_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures."""
    measured = result["calls"] > result["failed"]["n"] and result["edits"] > 0
    counts = {
        "wrong_answers": result["wrong"]["n"],
        "failed_calls": result["failed"]["n"],
        "failed_edits": result["failed_edits"]["n"],
        "lost_edits": result["lost_edits"],
        "failed_probes": result["failed_probes"]["n"],
        "deaths": result["deaths"],
        "left_behind": len(result["left_behind"]),
    }
    flat = {
        f"{name}_gained": at_most_figure(result["trends"][name] and result["trends"][name]["high"], bound)
        for name, (bound, _, _) in BOUNDS.items()
    }
    return {name: zero_figure(count, measured=measured) for name, count in counts.items()} | flat


def gain(times: Sequence[float], values: Sequence[float], scale: float) -> dict[str, Any] | None:
    """Return what is gained in the second half: the slope of block means times its duration, with a 95 % interval. None if it is too short.

    Args:
        times: The times of the samples, ascending.
        values: The samples.
        scale: What the result is divided by.
    """
    if len(times) < 2:
        return None
    half = (times[0] + times[-1]) / 2
    second = np.array([(time, value / scale) for time, value in zip(times, values, strict=True) if time >= half])
    if len(second) < 2 * BLOCKS:
        return None
    means = np.stack([block.mean(axis=0) for block in np.array_split(second, BLOCKS)])
    duration = float(second[-1, 0] - second[0, 0])
    centred = means[:, 0] - means[:, 0].mean()
    slope = float(centred @ means[:, 1] / (centred @ centred))
    residuals = means[:, 1] - means[:, 1].mean() - slope * centred
    # scipy's `linregress` has NaN as the error of constant values, such as an empty /dev/shm.
    error = math.sqrt(float(residuals @ residuals) / (BLOCKS - 2) / float(centred @ centred))
    from scipy import stats

    margin = float(stats.t.ppf(0.975, BLOCKS - 2)) * error * duration
    middle = slope * duration
    return {
        "gained": round(middle, 3),
        "low": round(middle - margin, 3),
        "high": round(middle + margin, 3),
        "mean": round(float(second[:, 1].mean()), 3),
        "duration_s": round(duration, 1),
    }


def _values(run: SoakRun, name: str) -> list[float]:
    return [float(getattr(sample, name)) for sample in run.samples]


def _texts(texts: Sequence[str]) -> dict[str, Any]:
    """Return the number of texts, and the first five."""
    return {"n": len(texts), "first": list(texts[:5])}
