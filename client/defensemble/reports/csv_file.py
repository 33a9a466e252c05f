"""A report as CSV: one row per figure."""

from __future__ import annotations

import csv
import dataclasses
import io

from .._printable import printable
from .model import Figure, Report

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_from_report(report: Report) -> str:
    """Return all figures of a report in long form. A value that is missing is empty; rates are between 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Figure)]
    writer.writerow(names)
    for figure in report.figures:
        writer.writerow([_value(getattr(figure, name)) for name in names])
    return text.getvalue()


def _value(value: str | float | None) -> str | float:
    """Return a value for a cell. Spreadsheets run text that begins like a formula, so a quote precedes it."""
    if isinstance(value, str):
        return printable(f"'{value}" if value.startswith(_FORMULA) else value)
    return "" if value is None else value
