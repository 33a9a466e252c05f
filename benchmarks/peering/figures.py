"""Compute the result and its figures from the records of a run. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.figures import Figure, above_figure, at_least_figure, round_ratios, spread
from benchmarks.common.timing import CallSetting

Record = Mapping[str, Any]
"""A server in a round: `round`, `key`, `ours`, `start_s`, `idle_bytes`, `loaded_bytes` (None in process), `processes`, `forms`, `failures`.

`forms` has, by the name of a form and the key of a setting, its `calls_per_s`, `images_per_s`, `n`, `p50`, `p99` and `max` (in ms); the
open loop also `late_share`.
"""
IN_PROCESS = "in_process"
OPEN_LOOP = "open_loop"
OPEN_FRACTION = 0.6  # of the throughput of the best form in process


@dataclass(frozen=True)
class Setting(CallSetting):
    """Callers and a batch size, and the goal for them.

    Attributes:
        ahead: Whether our servers must be ahead of each peer; otherwise level is enough.
    """

    ahead: bool = True


SETTINGS = (Setting(8, 16), Setting(8, 1), Setting(1, 1, ahead=False))
OPEN_SETTING = Setting(8, 1)


def summarize_forms(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return by setting and form the spread over the rounds of throughput and latencies; None for a form that failed in any round."""
    rounds: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    facts: dict[str, tuple[str, bool]] = {}
    failed = {name for record in records for name in record["failures"]}
    for record in records:
        for name in (*record["forms"], *record["failures"]):
            facts[name] = (record["key"], record["ours"])
        for name, settings in record["forms"].items():
            for key, values in settings.items():
                rounds.setdefault(key, {}).setdefault(name, []).append(values)
    result: dict[str, dict[str, Any]] = {}
    for key, forms in rounds.items():
        result[key] = {}
        for name, (server, ours) in facts.items():
            values = {} if name in failed or name not in forms else _spreads(forms[name])
            result[key][name] = {"server": server, "ours": ours, **{quantity: values.get(quantity) for quantity in _QUANTITIES}}
    return result


_QUANTITIES = ("images_per_s", "p50", "p99", "late_share")


def _spreads(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # In a window shorter than a call, no call ends; only the open loop has a late share.
    return {
        quantity: None if any(values.get(quantity) is None for values in rounds) else spread([values[quantity] for values in rounds])
        for quantity in _QUANTITIES
    }


def summarize_servers(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return by server the spread over the rounds of its start and memory, and its number of processes."""
    result: dict[str, dict[str, Any]] = {}
    for key in dict.fromkeys(record["key"] for record in records if record["key"] != IN_PROCESS):
        own = [record for record in records if record["key"] == key and record["start_s"] is not None]
        if own:
            result[key] = {
                **{quantity: spread([record[quantity] for record in own]) for quantity in ("start_s", "idle_bytes", "loaded_bytes")},
                "processes": own[-1]["processes"],
            }
    return result


def compare(forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best form of ours, of the peers and in process in a setting, and ratios of images per second; None without one of them.

    The best form is that with the highest median. Ratios are within a round.
    """
    best: dict[str, str | None] = {}
    for kind in ("ours", "peer", IN_PROCESS):
        names = [name for name, form in forms.items() if _kind(form) == kind and form["images_per_s"] is not None]
        best[kind] = max(names, key=lambda name: statistics.median(forms[name]["images_per_s"]["rounds"]), default=None)

    def ratio(form: str | None, other: str | None) -> dict[str, Any] | None:
        if form is None or other is None:
            return None
        return spread(round_ratios(forms[form]["images_per_s"]["rounds"], forms[other]["images_per_s"]["rounds"]))

    return {
        "best": best,
        "ours_to_peer": ratio(best["ours"], best["peer"]),
        "ours_to_in_process": ratio(best["ours"], best[IN_PROCESS]),
        "forms_to_in_process": {name: ratio(name if form["images_per_s"] else None, best[IN_PROCESS]) for name, form in forms.items()},
    }


def _kind(form: Mapping[str, Any]) -> str:
    if form["server"] == IN_PROCESS:
        return IN_PROCESS
    return "ours" if form["ours"] else "peer"


def compute_figures(comparisons: Mapping[str, Mapping[str, Any]], settings: Sequence[Setting] = SETTINGS) -> dict[str, Figure]:
    """Compute a figure for each setting: the ratio of our best form to the best form of all peers, which the figure names."""
    figures = {}
    for setting in settings:
        comparison = comparisons[setting.key]
        ratio = comparison["ours_to_peer"]
        figure = above_figure if setting.ahead else at_least_figure
        value = None if ratio is None else float(ratio["median"])
        figures[f"{setting.key}_to_best_peer"] = {**figure(value, 1.0), "best_peer": comparison["best"]["peer"]}
    return figures
