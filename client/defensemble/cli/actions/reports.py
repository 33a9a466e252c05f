"""The verification results of exported models, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from defensemble_repository.export_report import VersionReport, read_reports

from ..._exceptions import InputError
from .mask_aware_reports import form_notes, layer_table

if TYPE_CHECKING:
    from defensemble_export import ExportedMember

_TABLE_WIDTH = 77  # without the first column


def show_reports(repository: Path, models: Sequence[str], *, as_json: bool, with_layers: bool = False) -> None:
    """Print the reports of these models, or of all models of the repository; `with_layers` adds the layers of mask-aware files."""
    reports = read_reports(repository, list(models) or None)
    if not reports:
        raise InputError(f"{repository} has no exported model: export one with `defensemble export CHECKPOINT...`")
    if as_json:
        values = [
            {"model": report.model, "version": report.version, "report": report.values, "problem": report.problem} for report in reports
        ]
        click.echo(json.dumps(values, indent=2))
        return
    console = Console()
    # On a narrow terminal, lines wrap; rich would leave out digits.
    console.width = max(console.width, _TABLE_WIDTH + max(len(_name(report)) for report in reports))
    console.print(_table(reports))
    for report in reports:
        for line in _notes(report):
            click.echo(line)
    for report in reports:
        form = (report.values or {}).get("mask_aware") or {}
        if with_layers and form.get("layers"):
            console.print(layer_table(_name(report), form))


def summary(member: ExportedMember) -> str:
    """Return the verification result of an exported network in a few words; empty if it was not verified."""
    verification = None if member.report is None else json.loads(member.report)["verification"]
    if verification is None:
        return ""
    agreement = f"{100 * verification['agreement']:.2f} % of {verification['n']} images keep their class"
    difference = f"probabilities within {verification['largest_probability_difference']:.1g}"
    form = member.precision if member.mask_aware is None else f"{member.precision}, mask-aware"
    return f": {form}, {agreement}, {difference}; taken from {verification['images']}"


def _name(report: VersionReport) -> str:
    return f"{report.model}@{report.version}"


def _table(reports: Sequence[VersionReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("precision", "MB", "masks MB", "images", "same class %", "accuracy % (original)", "largest error"):
        table.add_column(heading, justify="right", min_width=11 if "(" in heading else 4)
    for report in reports:
        # Non-breaking spaces keep a cell on one line; headings wrap.
        table.add_row(_name(report), *(cell.replace(" ", "\u00a0") for cell in _cells(report.values or {})))
    return table


def _cells(values: Mapping[str, Any]) -> list[str]:
    if not values:
        return ["-"] * 7
    verification = values["verification"]
    sizes = [values["precision"], f"{values['onnx']['bytes'] / 1e6:.2f}", f"{values['onnx']['mask_bytes'] / 1e6:.2f}"]
    if verification is None:
        return [*sizes, "not verified", "-", "-", "-"]
    n = str(verification["n"])
    if "largest_difference" in verification:  # a fused graph, compared with its members
        return [*sizes, n, "-", "-", f"{max(verification['largest_difference'].values()):.0e}"]
    accuracy = "-"
    if verification["accuracy"] is not None:
        accuracy = f"{100 * verification['accuracy']:.1f} ({100 * verification['reference_accuracy']:.1f})"
    compares_logits = values["tolerance"]["logits"] is not None
    kind, key = ("logit", "largest_logit_difference") if compares_logits else ("prob.", "largest_probability_difference")
    return [*sizes, n, f"{100 * verification['agreement']:.2f}", accuracy, f"{verification[key]:.0e} {kind}"]


def _notes(report: VersionReport) -> list[str]:
    """Return the lines below the table: a missing report, missed goals, the calibration, and the form."""
    if report.values is None:
        return [f"{_name(report)}: no report: {report.problem}"]
    notes = [f"{_name(report)} misses a goal: {goal}" for goal in (report.values["verification"] or {}).get("goals_missed", [])]
    calibration = report.values["calibration"]
    if calibration is not None:
        notes.append(f"{_name(report)}: calibrated on {calibration['count']} {calibration['source']}, seed {calibration['seed']}")
    form = report.values.get("mask_aware")
    return notes if form is None else [*notes, *form_notes(_name(report), form)]
