"""The parts of pages: made of a result's JSON and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def look(result: Mapping[str, Any]) -> str:
    """The line that warns of a quick look; empty for a full run."""
    return "\n**A quick look, which proves nothing.**\n" if result["quick"] else ""


def commit(result: Mapping[str, Any]) -> str:
    """The commit that was measured, in short."""
    known = result["git_commit"] or "unknown"
    return f"{known[:12]}{'-dirty' * known.endswith('-dirty')}"


def measured_on(result: Mapping[str, Any], json_name: str, script: str) -> str:
    """How to repeat a measurement, and when and on what it was made: lines whose last one goes on."""
    hardware = result["hardware"]
    return (
        f"Repeat it with `python benchmarks/{script}.py --json docs/results/{script}.json`, which writes this page too.\n"
        f"The numbers are those of [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in {result['duration_s']:,.0f} s "
        f"on {hardware['cores']} cores of {hardware['cpu']}\n"
        f"(no GPU), Python {result['versions']['python']}, "
    )


def note(result: Mapping[str, Any]) -> list[str]:
    """The note that was given, as a paragraph; none where there is none."""
    return ["", result["note"]] if result.get("note") else []  # the first results have no such key


def row(*cells: str) -> str:
    """A row of a table."""
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    names = list(headers)
    return "\n".join([row(*names), "|---" * len(names) + "|", *(row(*cells) for cells in rows)])


def ranged(values: Mapping[str, Any], form: str = ".2f") -> str:
    """The median of rounds, with the smallest and the largest."""
    return f"{values['median']:{form}} ({values['min']:{form}} to {values['max']:{form}})"


def figures_table(figures: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Each figure by its name for people, with its value and its goal."""
    return table(
        ("figure", "value", "goal", ""),
        (
            (names.get(key, key), _value(figure["value"]), str(figure["goal"]), "holds" if figure["holds"] else "**missed**")
            for key, figure in figures.items()
        ),
    )


def _value(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
