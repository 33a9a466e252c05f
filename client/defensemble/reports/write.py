"""Write a report to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from .._exceptions import InputError
from ..results.result_file import check_writable, write_text
from .csv_file import csv_from_report
from .model import Chart, Report

FORMATS = ("html", "md", "csv")
_SUFFIXES = {".html": "html", ".htm": "html", ".md": "md", ".csv": "csv"}


def format_from_path(path: Path) -> str:
    """Return the format that a file's suffix names.

    Raises:
        InputError: The suffix names none.
    """
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        got = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(f"{path} has {got}, which names no format; expected .html, .md or .csv, or --format {'|'.join(FORMATS)}")
    return found


def write_report(report: Report, path: Path, form: str | None = None, charts_folder: Path | None = None) -> list[Path]:
    """Write a report, atomically; an earlier file is replaced. Returns the paths of all files that were written.

    Args:
        report: The report.
        path: The file.
        form: `html`, `md` or `csv`; None: by the file's suffix.
        charts_folder: Folder for the charts as SVG files, to which Markdown links; None: none are written.

    Raises:
        InputError: The format is unknown, or a chart would replace the report.
        MissingExtraError: HTML or charts are asked for, and the extra `probes` or `load` is not installed.
        OSError: A file cannot be written. The error names it.
    """
    form = format_from_path(path) if form is None else form
    if form not in FORMATS:
        raise InputError(f"the format must be one of {', '.join(FORMATS)}; got {form!r}")
    check_writable(path)
    charts: Mapping[str, Sequence[Chart]] = {}
    files: dict[Path, str] = {}
    if form == "html" or charts_folder is not None:
        from .charts import svg_from_chart

        charts = report.draw_charts()
        if charts_folder is not None:
            files = {charts_folder / f"{chart.id}.svg": svg_from_chart(chart) for own in charts.values() for chart in own}
            if path.resolve() in {file.resolve() for file in files}:
                raise InputError(f"{path} is the file of a chart: choose another name for the report, or another folder for the charts")
    if form == "html":
        from .html_page import html_from_report

        text = html_from_report(report, charts)
    elif form == "md":
        from .markdown_page import markdown_from_report

        folder = "" if charts_folder is None else _relative(charts_folder, path.parent)
        text = markdown_from_report(report, charts, folder)
    else:
        text = csv_from_report(report)
    files[path] = text  # last: it links to the others
    for file, content in files.items():
        write_text(file, partial(_put, content))
    return list(files)


def _put(content: str, file: TextIO) -> None:
    file.write(content)


def _relative(folder: Path, start: Path) -> str:
    return Path(os.path.relpath(folder, start)).as_posix()
