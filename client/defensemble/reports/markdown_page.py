"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .._version import __version__
from .model import Cell, Chart, Report, Section, Table

# Characters that dialects of Markdown do not all let a backslash escape become entities; so does the colon of a URL, else it is a link.
_ENTITIES = re.compile(r"[&<>|~^$]|:(?=//)")
_SPECIAL = re.compile(r"[\\`*_{}\[\]]")
_AT_START = re.compile(r"^(?:#+|[+=-]+|\d+[.)])(?=\s|$)")  # headings, lists and rules
_SPACE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")


def markdown_from_report(report: Report, charts: Mapping[str, Sequence[Chart]], folder: str) -> str:
    """Return the report as Markdown.

    Args:
        report: The report.
        charts: The charts by the id of their section, or of the overview; they are linked as SVG files.
        folder: Folder of these files, relative to the report.
    """
    return "\n".join(_lines(report, charts, folder)) + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no HTML, one line."""
    text = _SPECIAL.sub(r"\\\g<0>", _SPACE.sub(" ", text).strip())
    text = _AT_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", text)
    return _ENTITIES.sub(lambda found: f"&#{ord(found[0])};", text)


def _lines(report: Report, charts: Mapping[str, Sequence[Chart]], folder: str) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    for statement in report.statements:
        text = escaped(statement.text)
        yield from ("", f"**{text}**" if statement.is_alarm else text)
        if statement.items:
            yield from ("", escaped(statement.note), "", *(f"- {escaped(item)}" for item in statement.items))
    yield from ("", "## Sanity checks", "")
    for item in report.checks:
        yield f"- **{item.status}** {escaped(item.check.name)}: {escaped(item.check.text)} ({escaped(item.result)})"
    if not report.checks:
        yield "The results have no sanity checks."
    yield from _table(report.overview, "##")
    yield from _charts(charts.get(report.overview.id, ()), folder)
    for section in report.sections:
        yield from _section(section, charts.get(section.id, ()), folder)
    yield from ("", f"Written by defensemble {__version__} from result files.")


def _section(section: Section, charts: Sequence[Chart], folder: str) -> Iterator[str]:
    yield from ("", f"## {escaped(section.title)}", "", f"**{escaped(section.lead[0])}.** {escaped(section.lead[1])}", "")
    yield from (f"- {escaped(name)}: {escaped(value)}" for name, value in section.facts)
    yield from _table(section.tables[0], "###")
    yield from _charts(charts, folder)
    for table in section.tables[1:]:
        yield from _table(table, "###")
    if section.gallery:
        yield from ("", f"{len(section.gallery)} examples are in the HTML report.")
    yield from ("", "### Settings, seeds, versions, digests", "")
    for name, value in section.settings:
        yield f"- {escaped(name)}: {escaped(value)}"


def _charts(charts: Sequence[Chart], folder: str) -> Iterator[str]:
    for chart in charts:
        yield from ("", f"![{escaped(chart.alt)}](<{folder}/{chart.id}.svg>)")


def _table(table: Table, level: str) -> Iterator[str]:
    yield from ("", f"{level} {escaped(table.title)}", "", escaped(table.note), "")
    yield "| " + " | ".join(map(escaped, table.columns)) + " |"
    yield "|" + "|".join("---" if number < table.text_columns else "---:" for number in range(len(table.columns))) + "|"
    for row in table.rows:
        yield "| " + " | ".join(_cell(cell, is_name=number == 0) for number, cell in enumerate(row.cells)) + " |"


def _cell(cell: Cell, *, is_name: bool) -> str:
    if is_name:
        return escaped(cell.text + (f" ({'; '.join(cell.details)})" if cell.details else ""))
    return escaped(cell.text + "".join(f" {detail}" if detail.startswith("[") else f", {detail}" for detail in cell.details))
