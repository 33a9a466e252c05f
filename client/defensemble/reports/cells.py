"""Cells of tables from figures: the only place where the numbers of a report become text."""

from __future__ import annotations

import math

from .model import Cell, Figure

MISSING = "missing"
RATES = (
    *("accuracy", "defense_rate", "defense_rate_source_fooled", "accuracy_on_common", "attack_success", "mean_accuracy", "mean_error"),
    *("shape", "texture", "neither", "shape_bias"),
)
_COUNTS = (
    *("skipped", "attacked", "censored", "median_queries", "sent", "counted", "verification", "sanity", "retried", "repeated"),
    *("only_a", "only_b", "images"),
)


def cell_from_figure(figure: Figure, *, with_n: bool = False) -> Cell:
    """Return the cell of a figure.

    Args:
        figure: The figure.
        with_n: Whether the cell also shows n, where it differs from one cell of a row to the next.
    """
    suffix = (f"n = {figure.n:,}",) if with_n and figure.n is not None else ()
    if figure.value is None and figure.n == 0:
        return Cell("-", ("n = 0",))
    if figure.value is None and figure.quantity == "s_m" and figure.n:
        return Cell(_text(figure, None), key=math.inf)  # for half of the images, none was found
    if figure.value is None:
        return Cell(MISSING, suffix, is_missing=True)
    interval = () if figure.low is None and figure.high is None else (f"[{_text(figure, figure.low)}, {_text(figure, figure.high)}]",)
    return Cell(_text(figure, figure.value), (*interval, *suffix), figure.value)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 step` or `1,200 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """Return a number with up to four significant digits, such as `0.0314` or `7.3e-06`."""
    return f"{value:.4g}"


def _text(figure: Figure, value: float | None) -> str:
    if value is None:
        return "∞"  # an unbounded end of an interval
    if figure.role == "paper":
        return f"{100 * value:.2f}" if figure.quantity in RATES else number_text(value)  # as the paper prints them
    if figure.quantity in RATES:
        return f"{100 * value:.1f}"
    if figure.quantity in _COUNTS:
        return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
    if figure.quantity == "mcnemar_p":
        return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
    if figure.quantity.startswith("auroc"):
        return f"{value:.3f}"
    return f"{value:.2g}"
