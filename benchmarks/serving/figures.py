"""Compute the result and its figures from the timings. The functions are pure, so that tests can cover every case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.figures import round_ratios, spread
from benchmarks.common.forms import Form
from benchmarks.common.timing import Timing


@dataclass(frozen=True)
class Setting:
    """A number of callers and a batch size.

    Attributes:
        callers: Number of concurrent callers.
        batch: Images per call.
        goal: The lowest allowed ratio to the best form in the caller's process.
        spinning: Whether forms with spinning threads count. They keep a core busy while they wait.
    """

    callers: int
    batch: int
    goal: float
    spinning: bool = True

    @property
    def key(self) -> str:
        """Name in the names of figures."""
        return f"{self.callers}_caller{'s' if self.callers > 1 else ''}_batch_{self.batch}"

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.callers} x {self.batch}"


SETTINGS = (Setting(8, 16, 0.93), Setting(8, 1, 0.78), Setting(1, 1, 0.60, spinning=False))

Timings = Mapping[str, Sequence[Timing] | None]
"""By the name of a form, one timing per round; None if the form failed."""


def best_form(rates: Mapping[str, Sequence[float]]) -> str:
    """Return the name with the highest median rate."""
    return max(rates, key=lambda name: statistics.median(rates[name]))


def build_result(setting: Setting, forms: Sequence[Form], timings: Timings) -> dict[str, Any]:
    """Return the result of a setting as JSON: images per second of each form, and the ratios of served forms to the best in process.

    `to_best` compares with the form whose median over the rounds is best. `to_best_of_round` compares with the best form of each round,
    which noise makes look better than any single form is.
    """
    rates = {name: [timing.images_per_s for timing in rounds] for name, rounds in timings.items() if rounds is not None}
    peers = {form.name: rates[form.name] for form in forms if form.protocol is None}
    not_spinning = {form.name: rates[form.name] for form in forms if form.protocol is None and not form.spins}
    best, best_not_spinning = best_form(peers), best_form(not_spinning)
    ratios: dict[str, Any] = {}
    for form in forms:
        if form.protocol is None:
            continue
        form_rates = rates.get(form.name)
        ratios[form.protocol] = form_rates and {
            "to_best": spread(round_ratios(form_rates, peers[best])),
            "to_best_without_spinning": spread(round_ratios(form_rates, not_spinning[best_not_spinning])),
            "to_best_of_round": spread(round_ratios(form_rates, [max(round_rates) for round_rates in zip(*peers.values(), strict=True)])),
        }
    return {
        "callers": setting.callers,
        "batch": setting.batch,
        "best_in_process": best,
        "best_in_process_without_spinning": best_not_spinning,
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


def compute_figures(results: Mapping[str, Mapping[str, Any]], settings: Sequence[Setting] = SETTINGS) -> dict[str, dict[str, Any]]:
    """Compute the figure of each setting and protocol: the ratio, its goal, and whether it is met; None misses it."""
    figures = {}
    for setting in settings:
        for protocol, ratios in results[setting.key]["ratios"].items():
            kind = "to_best" if setting.spinning else "to_best_without_spinning"
            value = None if ratios is None else ratios[kind]["median"]
            figures[f"{protocol}_{setting.key}"] = {
                "value": value,
                "goal": f">= {setting.goal:.2f}",
                "holds": value is not None and value >= setting.goal,
            }
    return figures
