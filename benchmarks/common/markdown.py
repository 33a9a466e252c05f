"""Parts of result pages, generated only from the JSON of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def quick_warning(result: Mapping[str, Any]) -> str:
    """Return the warning for a quick run; empty for a full run."""
    return "\n**A quick run: too short for conclusions.**\n" if result["quick"] else ""


def short_commit(result: Mapping[str, Any]) -> str:
    """Return the measured commit, abbreviated."""
    commit = result["git_commit"] or "unknown"
    return f"{commit[:12]}{'-dirty' * commit.endswith('-dirty')}"


def format_measurement(result: Mapping[str, Any], json_name: str, script: str, page: str | None = None, options: str = "") -> str:
    """Return how to repeat a measurement, and its date and machine. The caller continues the last line.

    Args:
        result: The result.
        json_name: Name of its file.
        script: Name of the script, without `.py`.
        page: Name of the page if it is not that of the script.
        options: More options of the script, each after a space.
    """
    hardware = result["hardware"]
    return (
        f"Repeat it with `python benchmarks/{script}.py{options} --json docs/results/{page or script}.json`, which also writes this page.\n"
        f"The numbers are from [{json_name}]({json_name}), measured on {result['measured_at'][:10]} in {result['duration_s']:,.0f} s "
        f"on {hardware['cores']} cores of {hardware['cpu']}\n"
        f"(no GPU), Python {result['versions']['python']}, "
    )


def format_triton_measurement(result: Mapping[str, Any], json_name: str, script: str, page: str | None = None, options: str = "") -> str:
    """Return the same with Triton, commit and seed. The caller continues the sentence; see `format_measurement` for the arguments."""
    return (
        f"{format_measurement(result, json_name, script, page, options)}grpcio {result['versions']['grpcio']}, the embedded Triton "
        f"{result['server']['version']}, commit {short_commit(result)}, seed {result['seed']}"
    )


def served_members_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the end of the paragraph on a measurement of a served ensemble, and the paragraph on its members."""
    spec = result["member_spec"]
    return [
        f"Triton core {result['server']['version']} with this project's backend, commit {short_commit(result)}, seed {result['seed']}.",
        "",
        f"{len(result['members'])} defective networks ({spec['arch']}, width {spec['width']}, keep {spec['keep']}) at "
        f"{'x'.join(map(str, result['image_shape']))}, untrained, which does not affect the speed, averaged. The outputs of every",
        f"form were first compared with numpy's average; the largest difference is {result['largest_difference']:.2g}.",
    ]


def served_members_paragraphs(result: Mapping[str, Any], json_name: str, script: str, page: str | None = None) -> str:
    """Return the paragraphs on a measurement of a served ensemble and on its members, and the note; see `format_measurement`."""
    how = f"{format_measurement(result, json_name, script, page)}ONNX Runtime {result['versions']['onnxruntime']}, "
    first, *others = served_members_lines(result)
    return "\n".join([how + first, *others, *note_paragraph(result)])


def note_paragraph(result: Mapping[str, Any]) -> list[str]:
    """Return the user's note as a paragraph; empty without a note."""
    return ["", result["note"]] if result.get("note") else []  # the oldest results have no such key


def table_row(*cells: str) -> str:
    """Return a row of a Markdown table."""
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(headers)
    return "\n".join([table_row(*names), "|---" * len(names) + "|", *(table_row(*cells) for cells in rows)])


def format_spread(values: Mapping[str, Any], form: str = ".2f") -> str:
    """Format the median, minimum and maximum of rounds."""
    return f"{values['median']:{form}} ({values['min']:{form}} to {values['max']:{form}})"


def figures_table(figures: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], spreads: Mapping[str, Any] | None = None) -> str:
    """Return a table of the figures with their titles, values and goals.

    Args:
        figures: The figures.
        names: Their titles.
        spreads: Median, minimum and maximum of some figures, which are shown in place of the value.
    """
    spreads = spreads or {}
    return table(
        ("figure", "value", "goal", ""),
        (
            (
                names.get(key, key),
                format_spread(spreads[key], ".3f") if key in spreads else _value(figure["value"]),
                str(figure["goal"]),
                "holds" if figure["holds"] else "**missed**",
            )
            for key, figure in figures.items()
        ),
    )


def _value(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
