"""The table of `defensemble export --report`: what each exported file's verification came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from defensemble_repository.export_report import VersionReport, read_reports

if TYPE_CHECKING:
    from defensemble_export import ExportedMember


def show_reports(repository: Path) -> None:
    """Print the reports of all models in a repository."""
    reports = read_reports(repository, None)
    if not reports:
        raise click.ClickException(f"{repository} holds no exported model: write one with `defensemble export CHECKPOINT...`")
    console = Console()
    # A narrow terminal breaks the lines; rich would leave digits out.
    console.width = max(console.width, 72 + max(len(f"{one.model}@{one.version}") for one in reports))
    console.print(_table(reports))
    for one in reports:
        for text in _remarks(one):
            click.echo(text)


def summary(member: ExportedMember) -> str:
    """What the verification of an exported network came to, in a few words."""
    verified = None if member.report is None else json.loads(member.report)["verification"]
    if verified is None:
        return ""
    kept = f"{100 * verified['agreement']:.2f} % of {verified['n']} images keep their class"
    return f": {member.precision}, {kept}, probabilities within {verified['largest_probability_difference']:.1g}; on {verified['images']}"


def _table(reports: list[VersionReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for heading in ("in", "MB", "masks MB", "images", "same class %", "accuracy % (of the original)", "largest error"):
        table.add_column(heading, justify="right", min_width=11 if "(" in heading else 4)
    for one in reports:
        # A space that does not break: cells stay on one line, headings wrap.
        table.add_row(f"{one.model}@{one.version}", *(cell.replace(" ", "\u00a0") for cell in _cells(one.values or {})))
    return table


def _cells(values: Mapping[str, Any]) -> list[str]:
    if not values:
        return ["-"] * 7
    verified = values["verification"]
    sizes = [values["precision"], f"{values['onnx']['bytes'] / 1e6:.2f}", f"{values['onnx']['mask_bytes'] / 1e6:.2f}"]
    if verified is None:
        return [*sizes, "not verified", "-", "-", "-"]
    if "largest_difference" in verified:  # a fused graph, beside its members
        return [*sizes, str(verified["n"]), "-", "-", f"{max(verified['largest_difference'].values()):.0e}"]
    accuracy = "-" if verified["accuracy"] is None else f"{100 * verified['accuracy']:.1f} ({100 * verified['reference_accuracy']:.1f})"
    logits = values["tolerance"]["logits"] is not None
    what, largest = ("logit", "largest_logit_difference") if logits else ("prob.", "largest_probability_difference")
    return [*sizes, str(verified["n"]), f"{100 * verified['agreement']:.2f}", accuracy, f"{verified[largest]:.0e} {what}"]


def _remarks(one: VersionReport) -> list[str]:
    where = f"{one.model}@{one.version}"
    if one.values is None:
        return [f"{where}: no report: {one.problem}"]
    verified = one.values["verification"]
    remarks = [f"{where}: {text}" for text in (verified or {}).get("goals_missed", [])]
    calibration = one.values["calibration"]
    if calibration is not None:
        remarks.append(f"{where}: calibrated on {calibration['count']} {calibration['source']}, seed {calibration['seed']}")
    return remarks
