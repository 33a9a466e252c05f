"""From what was timed to the figures that must hold: pure, so that a test can tell what holds and what does not."""

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
    """How many callers ask about how many images at a time; `goal` is the least ratio to the best form in the caller's process.

    With `spinning` False that is the best of the forms whose threads sleep while they wait: spinning ones keep a core busy for nothing.
    """

    callers: int
    batch: int
    goal: float
    spinning: bool = True

    @property
    def key(self) -> str:
        """As in the names of figures."""
        return f"{self.callers}_caller{'s' if self.callers > 1 else ''}_batch_{self.batch}"

    @property
    def title(self) -> str:
        """As in tables."""
        return f"{self.callers} x {self.batch}"


SETTINGS = (Setting(8, 16, 0.93), Setting(8, 1, 0.78), Setting(1, 1, 0.60, spinning=False))

Timings = Mapping[str, Sequence[Timing] | None]
"""By the name of a form, one for each round; None where it failed."""


def best_of(rates: Mapping[str, Sequence[float]]) -> str:
    """The name with the highest median."""
    return max(rates, key=lambda name: statistics.median(rates[name]))


def result_of(setting: Setting, forms: Sequence[Form], timings: Timings) -> dict[str, Any]:
    """What a setting came to, as JSON: each form's images a second, and the ratios of those that are served to the best that are not.

    `to_best` compares with the form whose median over the rounds is best; `to_best_of_round` with the best of each round, whichever that
    was, which noise makes look better than any form is.
    """
    rates = {name: [one.images_per_s for one in rounds] for name, rounds in timings.items() if rounds is not None}
    peers = {form.name: rates[form.name] for form in forms if form.protocol is None}
    calm = {form.name: rates[form.name] for form in forms if form.protocol is None and not form.spins}
    best, best_calm = best_of(peers), best_of(calm)
    ratios: dict[str, Any] = {}
    for form in forms:
        if form.protocol is None:
            continue
        ours = rates.get(form.name)
        ratios[form.protocol] = ours and {
            "to_best": spread(round_ratios(ours, peers[best])),
            "to_best_without_spinning": spread(round_ratios(ours, calm[best_calm])),
            "to_best_of_round": spread(round_ratios(ours, [max(one) for one in zip(*peers.values(), strict=True)])),
        }
    return {
        "callers": setting.callers,
        "batch": setting.batch,
        "best_in_process": best,
        "best_in_process_without_spinning": best_calm,
        "ratios": ratios,
        "forms": {form.name: _form(form, timings[form.name]) for form in forms},
    }


def _form(form: Form, rounds: Sequence[Timing] | None) -> dict[str, Any]:
    told: dict[str, Any] = {"protocol": form.protocol, "spinning": form.spins, "images_per_s": None, "calls": None, "call_ms": None}
    if rounds is not None:
        calls = sorted(call for one in rounds for call in one.calls_ms)
        told["images_per_s"] = spread([one.images_per_s for one in rounds])
        told["calls"] = len(calls)
        # A window shorter than any call has none that came back in it.
        told["call_ms"] = {"p50": _quantile(calls, 0.5), "p99": _quantile(calls, 0.99)} if calls else None
    return told


def _quantile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)


def figures_of(results: Mapping[str, Mapping[str, Any]], settings: Sequence[Setting] = SETTINGS) -> dict[str, dict[str, Any]]:
    """The figures that were asked for: for each setting and protocol the ratio, its goal, and whether it holds; None does not."""
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
