"""Compute the result and its figures from the timings. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.figures import Figure, at_least_figure, at_most_figure, round_ratios, spread
from benchmarks.common.forms import Form
from benchmarks.common.timing import CallSetting, Timing

FASTAPI_GOAL = 1.02


@dataclass(frozen=True)
class Setting(CallSetting):
    """A number of callers and a batch size, and the goals for them.

    Attributes:
        in_process: The lowest allowed ratio of HTTP's images per second to those of the best form in the caller's process.
        grpc: The lowest allowed ratio of gRPC's images per second to HTTP's; None for no goal.
        spinning: Whether forms with spinning threads count. They keep a core busy while they wait.
        one_member: Whether a single member is called, not the ensemble.
    """

    in_process: float
    grpc: float | None = None
    spinning: bool = True
    one_member: bool = False

    @property
    def key(self) -> str:
        """Name in the names of figures."""
        return f"{'one_member_' * self.one_member}{super().key}"

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{'one member, ' * self.one_member}{super().title}"


SETTINGS = (
    Setting(8, 16, 0.97, grpc=0.97),
    Setting(8, 1, 1.0, grpc=0.97),
    Setting(1, 1, 0.88, grpc=0.92, spinning=False),
    Setting(8, 1, 0.7, one_member=True),
)

Timings = Mapping[str, Sequence[Timing] | None]
"""By the name of a form, one timing per round; None if the form failed."""


def best_form(rates: Mapping[str, Sequence[float]]) -> str:
    """Return the name with the highest median rate."""
    return max(rates, key=lambda name: statistics.median(rates[name]))


def build_result(setting: Setting, forms: Sequence[Form], timings: Timings) -> dict[str, Any]:
    """Return the result of a setting as JSON: each form, and ratios of images per second by form with a server.

    `to_best` compares with the form in the caller's process whose median over the rounds is best, among those that count.
    """
    rates = {form.name: [timing.images_per_s for timing in rounds] for form in forms if (rounds := timings[form.name]) is not None}
    best = best_form({form.name: rates[form.name] for form in forms if form.protocol is None and (setting.spinning or not form.spins)})
    names = {form.protocol: form.name for form in forms if form.protocol is not None}

    def ratio(form: str, other: str) -> dict[str, Any] | None:
        return spread(round_ratios(rates[form], rates[other])) if form in rates and other in rates else None

    ratios = {protocol: {"to_best": ratio(name, best)} for protocol, name in names.items()}
    ratios["grpc"]["to_http"] = ratio(names["grpc"], names["http"])
    if "fastapi" in names:
        for protocol in ("http", "grpc"):
            ratios[protocol]["to_fastapi"] = ratio(names[protocol], names["fastapi"])
    return {
        "title": setting.title,
        "one_member": setting.one_member,
        "callers": setting.callers,
        "batch": setting.batch,
        "best_in_process": best,
        "ratios": ratios,
        "forms": {form.name: _form(form, timings[form.name]) for form in forms},
    }


def _form(form: Form, rounds: Sequence[Timing] | None) -> dict[str, Any]:
    result: dict[str, Any] = {"protocol": form.protocol, "spinning": form.spins, "images_per_s": None, "calls": None, "call_ms": None}
    if rounds is not None:
        calls = sorted(call for timing in rounds for call in timing.calls_ms)
        result["images_per_s"] = spread([timing.images_per_s for timing in rounds])
        result["calls"] = len(calls)
        # In a window shorter than a call, no call ends.
        result["call_ms"] = {"p50": _quantile(calls, 0.5), "p99": _quantile(calls, 0.99)} if calls else None
    return result


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 3)


def compute_figures(results: Mapping[str, Mapping[str, Any]], settings: Sequence[Setting] = SETTINGS) -> dict[str, Figure]:
    """Compute the figures of all settings; a form that failed misses its goals."""
    figures = {}
    for setting in settings:
        result = results[setting.key]
        http, grpc = result["ratios"]["http"], result["ratios"]["grpc"]
        figures[f"{setting.key}_http_to_in_process"] = at_least_figure(_median(http["to_best"]), setting.in_process)
        if "to_fastapi" in http:
            figures[f"{setting.key}_http_to_fastapi"] = at_least_figure(_median(http["to_fastapi"]), FASTAPI_GOAL)
            figures[f"{setting.key}_http_to_fastapi_p99"] = at_most_figure(_p99_ratio(result["forms"]), 1.0)
        if setting.grpc is not None:
            figures[f"{setting.key}_grpc_to_http"] = at_least_figure(_median(grpc["to_http"]), setting.grpc)
    return figures


def _median(ratio: Mapping[str, Any] | None) -> float | None:
    return None if ratio is None else float(ratio["median"])


def _p99_ratio(forms: Mapping[str, Mapping[str, Any]]) -> float | None:
    calls = {form["protocol"]: form["call_ms"] for form in forms.values()}
    if calls["http"] is None or calls["fastapi"] is None:
        return None
    return round(float(calls["http"]["p99"] / calls["fastapi"]["p99"]), 4)
