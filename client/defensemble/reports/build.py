"""Build a report from results."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .._exceptions import InputError
from ..probes.base import CLEAN
from ..probes.foolbox_attacks import Boundary, HopSkipJump
from ..probes.merging import SHARD_PROVENANCE, TARGET_PROVENANCE
from ..probes.outcome import STATUSES, Check
from ..probes.suite import WORST_CASE
from ..results.packed import is_packed
from .cells import MISSING, cell_from_figure, counted
from .figures import SHAPE_BIAS, ResultFigures
from .model import Cell, CheckOfResult, Example, ProbeSection, Report, Result, Row, Statement, Table
from .probe_charts import charts_of
from .tables import INTERVAL, SectionTables

TITLE = "Robustness report"
_VERDICTS = {
    "fell": "the defence of {count} fell, since more than half of the images that are correct when clean are misclassified.",
    "weakened": "the attack weakens {count}.",
    "held": "{count} held, since the intervals of clean and attacked accuracy overlap.",
    "inconclusive": "nothing is known of {count}: there are too few images, or the attack does not fool its own source.",
}
_PNG = b"\x89PNG\r\n\x1a\n"
# Where a run's own values are, next to those that the page shows elsewhere.
_SETTINGS = (
    "settings",
    "seed",
    "shard",
    "data",
    "versions",
    "hardware",
    "server",
    "url",
    "git_commit",
    "measured_at",
    "duration_s",
    "details",
    SHARD_PROVENANCE,
    TARGET_PROVENANCE,
)


def build_report(results: Sequence[Result], title: str = TITLE) -> Report:
    """Return the report on results, in their order.

    Args:
        results: The results.
        title: Title of the report.

    Raises:
        InputError: An example of the gallery is not a PNG.
    """
    figures = [ResultFigures(result) for result in results]
    sections, paper_figures = [], []
    for number, (result, own, title_of_result) in enumerate(zip(results, figures, _titles(results), strict=True), 1):
        section = f"s{number}"
        tables = SectionTables(section, result.values, own)
        made = tuple(tables.all())
        sections.append(_section(section, result, made, title_of_result))
        paper_figures += tables.paper_figures
    checks = sorted(
        (CheckOfResult(section.title, Check(**check)) for section in sections for check in section.result.values["checks"]),
        key=lambda item: -STATUSES.index(item.status),
    )
    overview = _overview(sections, figures)
    order = [row.cells[0].text for row in overview.rows]
    return Report(
        title,
        f"{counted(len(sections), 'result')}, {counted(len(order), 'target')}",
        tuple(_statements(sections, figures)),
        tuple(checks),
        overview,
        tuple(sections),
        (*(figure for own in figures for figure in own.all), *paper_figures),
        lambda: {section.id: charts_of(section, order) for section in sections},
    )


def _titles(results: Sequence[Result]) -> list[str]:
    """Return the title of each result; results of the same title get their file's name, too, or its path if the name is not unique."""
    titles = [f"{result.values['title']} ({result.values['input']})" for result in results]
    stems = [Path(result.path).stem for result in results]
    files = [stem if stems.count(stem) == 1 else result.path for stem, result in zip(stems, results, strict=True)]
    return [f"{title}: {file}" if titles.count(title) > 1 else title for title, file in zip(titles, files, strict=True)]


def _statements(sections: Sequence[ProbeSection], figures: Sequence[ResultFigures]) -> Iterator[Statement]:
    """Yield what a reader must know first: whether an adaptive attack broke a target, and what failed."""
    note = "Accuracy when clean and when attacked, and the defence rate, in the worst case per image; with Wilson 95 % intervals and n:"
    has_adaptive = False
    for section, own in zip(sections, figures, strict=True):
        items: dict[str, list[str]] = {}
        for target in section.result.values["targets"]:
            if summary := own.adaptive_summary(target["name"]):
                items.setdefault(summary["verdict"], []).append(_item(target, own))
        count = sum(map(len, items.values()))
        for verdict, text in _VERDICTS.items():
            if verdict in items:
                sentence = f"{section.title}: {text.format(count=f'{len(items[verdict])} of {count} targets')}"
                yield Statement(sentence, is_alarm=verdict == "fell", note=note, items=tuple(items[verdict]))
        has_adaptive = has_adaptive or count > 0
    if not has_adaptive:
        text = "No result of the probe adaptive is part of this report: it does not show what an attacker achieves who knows the defence."
        yield Statement(text, is_alarm=False)
    for section in sections:
        for target in section.result.values["targets"]:
            if target["failure"] is not None:
                text = f"{target['name']} failed in {section.title}: {target['failure'].rstrip('.')}. What was not measured is {MISSING}."
                yield Statement(text, is_alarm=True)


def _item(target: Mapping[str, Any], own: ResultFigures) -> str:
    def rate(condition: str, quantity: str) -> str:
        figure = own.get(target["name"], condition, quantity)
        cell = cell_from_figure(figure)
        return f"{cell.text} % {' '.join(cell.details)}, n = {figure.n:,}"

    rates = f"clean {rate(CLEAN, 'accuracy')}; attacked {rate(WORST_CASE, 'accuracy')}; defence rate {rate(WORST_CASE, 'defense_rate')}"
    return f"{target['name']} ({target['role']}): {rates}"


@dataclass(frozen=True)
class _Column:
    """A column of the overview: the lowest of a target's rates of one quantity under these conditions, the hardest ones first."""

    title: str
    section: ProbeSection
    own: ResultFigures
    quantity: str
    conditions: Sequence[str]

    def cell(self, target: str) -> Cell:
        if all(one["name"] != target for one in self.section.result.values["targets"]):
            return Cell("not a target", is_missing=True)
        figures = [self.own.get(target, condition, self.quantity) for condition in self.conditions]
        measured = [figure for figure in figures if figure.value is not None]
        if not measured:
            return cell_from_figure(figures[0])
        worst = min(measured, key=lambda figure: figure.value or 0.0)  # the first of equal ones
        cell = cell_from_figure(worst)
        return Cell(cell.text, (*cell.details, worst.condition, f"n = {worst.n:,}"), cell.key)


def _columns(section: ProbeSection, own: ResultFigures) -> Iterator[_Column]:
    """Yield the columns of a result in the overview: of cue conflicts the shape bias, else the accuracy under the hardest condition."""
    conflicts = [name for name, quantities in own.folders.items() if SHAPE_BIAS in quantities]
    for folder in conflicts:
        yield _Column(f"{section.title}: shape bias", section, own, SHAPE_BIAS, [folder])
    values = section.result.values
    if values["probe"] == "suite":
        yield _Column(section.title, section, own, "accuracy", [WORST_CASE])
    elif not conflicts and (values["conditions"] or own.folders):
        # The last ones are the hardest, and those of the largest value; the sort is stable.
        strengths = {condition["name"]: condition["value"] for condition in values["conditions"]}
        conditions = [WORST_CASE, *reversed([*strengths, *own.folders])]
        conditions.sort(key=lambda name: -math.inf if strengths.get(name) is None else strengths[name], reverse=True)
        yield _Column(section.title, section, own, "accuracy", conditions)


def _overview(sections: Sequence[ProbeSection], figures: Sequence[ResultFigures]) -> Table:
    roles = {target["name"]: target["role"] for section in sections for target in section.result.values["targets"]}
    columns = [column for section, own in zip(sections, figures, strict=True) for column in _columns(section, own)]
    rows = [Row((Cell(name, (role,), name), *(column.cell(name) for column in columns))) for name, role in roles.items()]
    note = "Accuracy of each target, %, under the hardest condition of each result"
    note += "; of cue conflicts, the shape bias, %." if any(column.quantity == SHAPE_BIAS for column in columns) else "."
    return Table("overview", "Overview", f"{note} {INTERVAL}", ("target", *(column.title for column in columns)), tuple(rows))


def _section(section: str, result: Result, tables: tuple[Table, ...], title: str) -> ProbeSection:
    values = result.values
    data = values["data"]
    facts = {
        "images": f"{data['n']:,} of {data.get('name', 'unknown data')}",
        "input": values["input"],
        "responses": _responses(values),
        "norm": values["norm"],
        "budget": None if values["budget"] is None else f"{values['budget']:,} queries per image",
        "seed": str(values["seed"]),
        "method": values["paper"],
        "measured": None if values.get("measured_at") is None else str(values["measured_at"]),
    }
    settings = [(name, _pretty(values[name])) for name in _SETTINGS if values.get(name) not in (None, {}, [])]
    identities = {target["name"]: target["identity"] for target in values["targets"] if target["identity"]}
    if identities:
        settings.append(("identity of each target", _pretty(identities)))
    settings += [("result file", result.path), ("SHA-256 of the result file", result.sha256), ("schema", values["schema"])]
    return ProbeSection(
        section,
        title,
        ("Threat model", values["threat_model"]),
        tuple((name, value) for name, value in facts.items() if value is not None),
        tables,
        tuple(_example(entry, values["class_names"], result.path) for entry in values["gallery"]),
        tuple(settings),
        result,
    )


def _responses(values: Mapping[str, Any]) -> str:
    uses_classes = values["probe"] in (Boundary.name, HopSkipJump.name) and values["answers"] != "labels"
    return f"{values['answers']}, of which only the class is used" if uses_classes else str(values["answers"])


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_without_arrays(value), indent=2, ensure_ascii=False)


def _without_arrays(value: Any) -> Any:
    """Return JSON with a description in place of each packed array."""
    if is_packed(value):
        return f"{value['shape']} values, in the result file"
    if isinstance(value, list):
        return [_without_arrays(item) for item in value]
    return {key: _without_arrays(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Entry(msgspec.Struct):
    """An entry of a result's gallery."""

    target: str
    row: int
    condition: str
    label: int
    clean_class: int
    adversarial_class: int
    clean_png: str
    adversarial_png: str
    difference_png: str
    amplification: float
    distance: float | None = None
    entropy_clean: float | None = None
    entropy_adversarial: float | None = None


def _example(values: Mapping[str, Any], class_names: Sequence[str], path: str) -> Example:
    try:
        entry = msgspec.convert(values, _Entry)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is damaged: gallery: {error}") from error
    facts = [] if entry.distance is None else [f"distance {entry.distance:.3g}"]
    if entry.entropy_clean is not None and entry.entropy_adversarial is not None:
        facts.append(f"entropy {entry.entropy_clean:.2f} to {entry.entropy_adversarial:.2f} nats")
    where = f"{path}: gallery, image {entry.row}"
    label, clean_class, adversarial_class = (
        _class_name(index, class_names) for index in (entry.label, entry.clean_class, entry.adversarial_class)
    )
    clean, adversarial, difference = (_png(text, where) for text in (entry.clean_png, entry.adversarial_png, entry.difference_png))
    return Example(
        target=entry.target,
        row=entry.row,
        condition=entry.condition,
        label=label,
        clean_class=clean_class,
        adversarial_class=adversarial_class,
        clean_png=clean,
        adversarial_png=adversarial,
        difference_png=difference,
        amplification=f"{entry.amplification:.0f}" if abs(entry.amplification) >= 10 else f"{entry.amplification:.2g}",
        facts=tuple(facts),
    )


def _class_name(index: int, class_names: Sequence[str]) -> str:
    return class_names[index] if 0 <= index < len(class_names) else f"class {index}"


def _png(text: str, where: str) -> str:
    """Return a PNG in base64, checked: it becomes part of the page."""
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(f"{where} is not base64: {error}") from error
    if not content.startswith(_PNG):
        raise InputError(f"{where} is not a PNG: it starts with {content[:8]!r}")
    return base64.b64encode(content).decode()
