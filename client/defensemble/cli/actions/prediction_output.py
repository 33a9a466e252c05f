"""What `defensemble predict` prints: a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import click
from rich.console import Console
from rich.table import Table

from ..cells import cell
from ..notes import print_progress

SCHEMA = "defensemble.predict/1"
_FILE_WIDTH = 120  # characters per line where standard output is not a terminal
_TABLE_ROWS = 1000  # nobody reads more; rich takes 1 to 2 ms per row, longer than the prediction of a small image

Row = Mapping[str, Any]


class PredictionOutput(Protocol):
    """Where the predictions go: one row for each image, and at the end what is known of all."""

    def add(self, row: Row) -> None:
        """Take the row of an image."""

    def finish(self, summary: Mapping[str, Any], accuracy_text: str | None) -> None:
        """Print the rest.

        Args:
            summary: Counts, accuracy and preprocessing, for JSON.
            accuracy_text: The accuracy as a sentence; None if no class was known.
        """


class JsonOutput(PredictionOutput):
    """One JSON object with all predictions, printed at the end: all of it or nothing."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep the row."""
        self._rows.append(row)

    def finish(self, summary: Mapping[str, Any], accuracy_text: str | None) -> None:
        """Print the object."""
        head = {"schema": SCHEMA, "model": summary["model"], "predictions": self._rows}
        click.echo(json.dumps({**head, **summary}, indent=2, allow_nan=False))


class JsonLinesOutput(PredictionOutput):
    """A JSON object per line for each image, printed as it is predicted."""

    def add(self, row: Row) -> None:
        """Print the row."""
        click.echo(json.dumps(row, allow_nan=False))

    def finish(self, summary: Mapping[str, Any], accuracy_text: str | None) -> None:
        """Print the accuracy on standard error."""
        if accuracy_text is not None:
            print_progress(accuracy_text)


class CsvOutput(PredictionOutput):
    """A header, and a line for each image, printed as it is predicted. Text is in quotes, so that names may have commas or newlines.

    Args:
        columns: The columns after those of the most probable classes, some of the keys of a row.
        top: Number of classes.
    """

    def __init__(self, columns: Sequence[str], top: int) -> None:
        self._columns = columns
        classes = [(f"label{end}", f"index{end}", f"probability{end}") for end in ("", *(f"_{rank}" for rank in range(2, top + 1)))]
        self._print(["file", *(name for triple in classes for name in triple), *columns])

    def add(self, row: Row) -> None:
        """Print the row."""
        classes = [entry[key] for entry in row["top"] for key in ("label", "index", "probability")]
        self._print([row["file"], *classes, *(self._cell(row.get(name, "")) for name in self._columns)])

    def finish(self, summary: Mapping[str, Any], accuracy_text: str | None) -> None:
        """Print the accuracy on standard error."""
        if accuracy_text is not None:
            print_progress(accuracy_text)

    @staticmethod
    def _cell(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list) else value  # the probabilities of the members

    @staticmethod
    def _print(values: Sequence[Any]) -> None:
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(values)
        click.echo(line.getvalue(), nl=False)


class TableOutput(PredictionOutput):
    """A table for people, of the first 1,000 images, and below it the accuracy.

    Args:
        title: Title of the table, without the number of images.
        with_truth: Whether classes are known.
        with_information: Whether the mutual information was requested.
    """

    def __init__(self, title: str, *, with_truth: bool, with_information: bool) -> None:
        self._title = title
        self._with_truth = with_truth
        self._with_information = with_information
        self._rows: list[Row] = []
        self._count = 0

    def add(self, row: Row) -> None:
        """Keep the row if it is one of the first."""
        self._count += 1
        if self._count <= _TABLE_ROWS:
            self._rows.append(row)

    def finish(self, summary: Mapping[str, Any], accuracy_text: str | None) -> None:
        """Print the table and the accuracy."""
        console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
        console.print(self._table())
        if self._count > _TABLE_ROWS:
            console.print(f"and {self._count - _TABLE_ROWS:,} more images; --csv or --jsonl prints all", highlight=False)
        if accuracy_text is not None:
            console.print(accuracy_text, highlight=False)

    def _table(self) -> Table:
        table = Table(title=f"{cell(self._title)}: {self._count:,} image{'' if self._count == 1 else 's'}")
        table.add_column("file", overflow="fold")
        if self._with_truth:
            table.add_column("truth")
        table.add_column("label")
        table.add_column("probability", justify="right")
        table.add_column("entropy (nats)", justify="right")
        if self._with_information:
            table.add_column("mutual information (nats)", justify="right")
        for row in self._rows:
            cells = [cell(row["file"])]
            if self._with_truth:
                cells.append(cell(row.get("truth", "")))
            cells.append("\n".join(cell(entry["label"]) for entry in row["top"]))
            cells.append("\n".join(f"{entry['probability']:.4f}" for entry in row["top"]))
            cells.append(f"{row['entropy']:.4f}")
            if self._with_information:
                cells.append(f"{row['mutual_information']:.4f}")
            table.add_row(*cells)
        return table
