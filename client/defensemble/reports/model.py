"""What a report holds: figures, and tables, statements and examples made of them. HTML, Markdown and CSV are written from these values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..probes.outcome import Check, ProbeOutcome, Status

RowKind = Literal["target", "paper"]


@dataclass(frozen=True)
class Result:
    """A result file that was read and checked.

    Attributes:
        path: The file, as the user named it.
        sha256: Digest of its content.
        outcome: What it holds for each image.
        values: The outcome as JSON, with all rates computed again from that.

    Example:
        >>> Result("noise.json", "4f5a...", outcome, outcome.json()).values["targets"]
    """

    path: str
    sha256: str
    outcome: ProbeOutcome
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A number of a report, and what it is a number of. One row of the CSV.

    Attributes:
        source: The result file; empty for the paper's figures.
        probe: Name of the result, such as `noise-gaussian-float32`.
        target: The target, or the network of the paper.
        role: `ensemble`, `member`, `other`, `function` or `paper`.
        condition: The condition, or the folder of images; `clean` without a perturbation; empty if the figure has none.
        quantity: What was measured, such as `accuracy`.
        value: The value; None if it is missing.
        low: Lower end of its 95 % interval; None without one.
        high: Upper end.
        successes: For a rate, how many of `n`.
        n: Number of images; None for a number that has none.
        compared_with: The second target of a paired test.

    Example:
        >>> Figure("noise.json", "noise-gaussian-float32", "alpha", "member", "sigma 8", "accuracy", 0.5, 0.4, 0.6, 50, 100)
    """

    source: str
    probe: str
    target: str
    role: str
    condition: str
    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None
    successes: int | None = None
    n: int | None = None
    compared_with: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        details: Smaller lines below it: an interval, n, a role.
        key: By what a column is sorted; None sorts last.
        is_missing: Whether the text stands for a missing value.

    Example:
        >>> Cell("75.9", ("[73.1, 78.4]",), 0.759)
    """

    text: str
    details: tuple[str, ...] = ()
    key: float | str | None = None
    is_missing: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table. Rows of the paper stay below the others when a table is sorted.

    Example:
        >>> Row((Cell("alpha"), Cell("75.9", ("[73.1, 78.4]",), 0.759)))
    """

    cells: tuple[Cell, ...]
    kind: RowKind = "target"


@dataclass(frozen=True)
class Table:
    """A table. Columns after the first `text_columns` hold numbers.

    Example:
        >>> Table("s1-accuracy", "Accuracy, %", "n = 1,000", ("target", "clean"), rows)
    """

    id: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int = 1
    is_long: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        id: Unique within the report; also the name of its SVG file.
        title: Its title.
        alt: What it shows, and where its numbers are.
        spec: Vega-Lite, whose width is that of its container.

    Example:
        >>> Chart("s1-curve", "Accuracy against sigma", "Lines of five targets ...", chart.to_dict())
    """

    id: str
    title: str
    alt: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Statement:
    """What a reader must know first.

    Attributes:
        text: A sentence or two.
        is_alarm: Whether an attack broke a target, or a measurement failed.
        note: What the items give; empty without items.
        items: A list below the text.

    Example:
        >>> Statement("The adaptive attack broke 1 of 2 targets.", is_alarm=True, note="Defence rates:", items=("alpha: 12.5 % ...",))
    """

    text: str
    is_alarm: bool
    note: str = ""
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckOfResult:
    """A sanity check, with the result that it belongs to.

    Example:
        >>> CheckOfResult("noise-gaussian-float32", Check("range", "PASS", "all pixels were in [0, 1]"))
    """

    result: str
    check: Check

    @property
    def status(self) -> Status:
        """`PASS`, `WARN` or `FAIL`."""
        return self.check.status


@dataclass(frozen=True)
class Example:
    """An image of the gallery. The pictures are PNG in base64.

    Example:
        >>> Example("alpha", 17, "epsilon 8", "cat", "cat", "dog", clean, adversarial, difference, "x 10", "distance 0.03")
    """

    target: str
    row: int
    condition: str
    label: str
    clean_class: str
    adversarial_class: str
    clean_png: str
    adversarial_png: str
    difference_png: str
    amplification: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One result within a report.

    Attributes:
        id: Unique within the report.
        title: Its title, such as the probe's with the input type.
        lead: The name and the text of its first paragraph, such as the threat model.
        facts: Names and values of the run, in a line.
        tables: The tables.
        gallery: Examples.
        settings: Names and values: settings, seeds, versions, digests.

    Example:
        >>> [table.title for table in section.tables]
    """

    id: str
    title: str
    lead: tuple[str, str]
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    gallery: tuple[Example, ...]
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProbeSection(Section):
    """One result file of a probe within a report.

    Attributes:
        result: The file.

    Example:
        >>> section.result.values["targets"]
    """

    result: Result


@dataclass(frozen=True)
class Report:
    """A report on one or several results.

    Attributes:
        title: Its title.
        subtitle: What it is a report on, in a few words.
        statements: Sentences for the top.
        checks: The sanity checks, failed ones first.
        overview: What compares the targets; for probes, one row per target, one column per result, of cue conflicts one per folder.
        sections: The results, in the order of the files.
        figures: Every number.
        draw_charts: Draws the charts, by the id of their section, or of the overview. It raises `MissingExtraError` without the extra
            `probes` or `load`.

    Example:
        >>> write_report(build_report(read_results([Path("noise.json")])), Path("report.html"))
    """

    title: str
    subtitle: str
    statements: tuple[Statement, ...]
    checks: tuple[CheckOfResult, ...]
    overview: Table
    sections: tuple[Section, ...]
    figures: tuple[Figure, ...]
    draw_charts: Callable[[], Mapping[str, Sequence[Chart]]]
