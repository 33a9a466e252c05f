"""The action of `defensemble report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ..._exceptions import InputError
from ...reports import build_report, format_from_path, read_results, write_report
from ..notes import print_note


def report_and_print(files: Sequence[Path], out: Path, form: str | None, title: str, charts: Path | None) -> None:
    """Write a report, and print the names of the files.

    Args:
        files: Result files.
        out: The report.
        form: Its format; None: by the suffix of `out`.
        title: Its title.
        charts: Folder for the charts as SVG files; None: none are written.

    Raises:
        InputError: A file is no result, or the report would replace it.
        MissingExtraError: The format needs packages that are not installed.
        OSError: A file cannot be read or written.
    """
    form = form or format_from_path(out)
    for file in files:
        if out.exists() and out.samefile(file):
            raise InputError(f"--out {out} is one of the results: choose another name for the report, such as report.html")
    report = build_report(read_results(files), title)
    for statement in report.statements:
        if statement.is_alarm:
            print_note(statement.text)
    for path in write_report(report, out, form, charts):
        click.echo(f"wrote {path}")
