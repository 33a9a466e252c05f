"""How loads and measured numbers are shown, on a terminal and in reports."""

from __future__ import annotations

from .result import Step


def number(value: float) -> str:
    """Return a rate or a time with at least three significant digits, such as `0.123`, `8.75`, `31.2`, `1,234`."""
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def load_name(load: float, *, is_open: bool) -> str:
    """Return a load in words, such as `8 callers` or `50/s`."""
    return f"{number(load)}/s" if is_open else f"{load:,.0f} caller{'s' * (load != 1)}"


def load_of(step: Step) -> float:
    """Return the number of callers or the rate of a step."""
    return float(step.callers if step.callers is not None else step.rate_per_s or 0)


def load_text(step: Step) -> str:
    """Return the load of a step, such as `8 callers` or `100/s`."""
    return load_name(load_of(step), is_open=step.callers is None)
