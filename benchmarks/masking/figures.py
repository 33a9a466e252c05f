"""The figures of the benchmark and their goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure, at_most_figure

# Of ResNet-18: goal by keep and batch.
DETAIL_GOALS = {
    ("0.1", "1"): 1.5,
    ("0.1", "16"): 1.9,
    ("0.1", "64"): 1.9,
    ("0.3", "1"): 1.0,
    ("0.3", "16"): 1.8,
    ("0.3", "64"): 1.8,
    ("0.5", "1"): 1.0,
    ("0.5", "16"): 1.5,
    ("0.5", "64"): 1.5,
}
_SLOWEST = 0.97
_GRID_GOALS = {"vgg19": 1.3, "wrn32_4": 1.4}


def compute_figures(measured: Mapping[str, Any]) -> dict[str, Figure]:
    """Compute the figures of a result; those that a quick run does not measure are left out."""
    figures = {}
    for (keep, batch), goal in DETAIL_GOALS.items():
        if (entry := measured["detail"].get(keep, {}).get(batch)) is not None:
            figures[f"resnet18_keep_{keep}_batch_{batch}"] = at_least_figure(_speed(entry), goal)
    for batch, entry in measured["members"].items():
        figures[f"five_members_batch_{batch}"] = at_least_figure(_speed(entry), DETAIL_GOALS["0.1", batch])
    for arch, goal in _GRID_GOALS.items():
        if (times := measured["grid"].get(arch, {}).get("0.1", {}).get("time")) is not None and "16" in times:
            figures[f"{arch}_keep_0.1_batch_16"] = at_least_figure(_speed(times["16"]), goal)
    slowest = min((speed for _, speed in grid_speeds(measured["grid"])), default=None)
    figures["slowest_of_the_grid"] = at_least_figure(slowest, _SLOWEST)
    figures["served"] = at_least_figure(measured["served"]["speed"]["median"], 1.8)
    costs = measured["costs"]
    figures["load"] = at_most_figure(costs["load"]["median"], 1.3)
    figures["resident"] = at_most_figure(costs["resident"]["median"], 1.2)
    figures["file"] = at_most_figure(round(costs["file"], 5), 1.01)
    return figures


def grid_speeds(grid: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the name and the median speed of every setting of the grid in which the operator is used."""
    for arch, keeps in grid.items():
        for keep, entry in keeps.items():
            for batch, times in entry.get("time", {}).items():
                yield f"{arch}, keep {keep}, batch {batch}", _speed(times)


def _speed(entry: Mapping[str, Any]) -> float:
    return float(entry["mask_aware"]["speed"]["median"])
