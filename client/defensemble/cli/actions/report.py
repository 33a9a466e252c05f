"""The action of `defensemble report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from ..._exceptions import InputError
from ...load.result import SCHEMA, read_load_result
from ...reports import build_report, format_from_path, load_report, read_results, write_report
from ..notes import print_note


class _Kind(msgspec.Struct):
    """What a result file is, without the rest of it."""

    schema: str = ""


def report_and_print(files: Sequence[Path], out: Path, form: str | None, title: str | None, charts: Path | None) -> None:
    """Write a report, and print the names of the files.

    Args:
        files: Result files of probes, or one of a load test.
        out: The report.
        form: Its format; None: by the suffix of `out`.
        title: Its title; None: by the kind of the results.
        charts: Folder for the charts as SVG files; None: none are written.

    Raises:
        InputError: A file is no result, a load test is not the only file, or the report would replace a file.
        MissingExtraError: The format needs packages that are not installed.
        OSError: A file cannot be read or written.
    """
    form = form or format_from_path(out)
    for file in files:
        if out.exists() and out.samefile(file):
            raise InputError(f"--out {out} is one of the results: choose another name for the report, such as report.html")
    load_tests = [file for file in files if _is_load_test(file)]
    if load_tests and len(files) > 1:
        raise InputError(
            f"{load_tests[0]} is the result of a load test, and a report on one takes no other file; got {len(files)} files. "
            "Write a report on each load test, or measure several servers in one test: `defensemble load URL URL --json FILE`."
        )
    titles = {} if title is None else {"title": title}
    report = load_report(read_load_result(files[0]), **titles) if load_tests else build_report(read_results(files), **titles)
    for statement in report.statements:
        if statement.is_alarm:
            print_note(statement.text)
    for path in write_report(report, out, form, charts):
        click.echo(f"wrote {path}")


def _is_load_test(file: Path) -> bool:
    if not file.is_file():  # a pipe can be read only once
        return False
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Kind).schema == SCHEMA
    except (msgspec.DecodeError, RecursionError):
        return False  # its reader has the better error
