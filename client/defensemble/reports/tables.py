"""The tables of a section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..probes.base import CLEAN
from ..probes.suite import WORST_CASE
from ..probes.uncertainty import MEASURES
from .cells import MISSING, RATES, cell_from_figure, number_text
from .figures import MEAN_ERROR, QUERY_COUNTS, ResultFigures, condition_groups
from .model import Cell, Figure, Row, Table
from .paper import PaperTable, accuracy_in_paper, score_in_paper

INTERVAL = "Brackets: Wilson 95 % intervals."
_TITLES = {
    "accuracy": ("Accuracy", "Share of all images that are classified correctly."),
    "defense_rate": ("Defence rate", "Share of the images that the target classifies correctly when clean."),
    "defense_rate_source_fooled": (
        "Defence rate where the source is fooled",
        "Share of the images that the target classifies correctly when clean and whose adversarial example fools its source.",
    ),
    "accuracy_on_common": ("Accuracy on common images", "Share of the images that all targets classify correctly when clean."),
}
_MEASURE_NAMES = {"entropy": "entropy", "mutual_information": "mutual information"}
_REJECTED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_QUERY_STEPS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000)
_LONG_TABLE = 30  # rows, above which the page folds a table
_MOST_COLUMNS = 12  # conditions, above which they become rows
_Columns = Mapping[str, tuple[str, str]]


class SectionTables:
    """Makes the tables of one result, and collects the paper's figures that they show.

    Example:
        >>> tables = SectionTables("s1", values, figures)
        >>> [table.title for table in tables.all()]
    """

    def __init__(self, section: str, values: Any, figures: ResultFigures) -> None:
        self._section = section
        self._values = values
        self._figures = figures
        self._targets = list(values["targets"])
        self._conditions = [condition["name"] for condition in values["conditions"]]
        self.paper_figures: list[Figure] = []

    def all(self) -> Iterator[Table]:
        """Yield the tables that the result has values for."""
        if self._figures.folders:
            yield self._folders()
            yield self._books()
            return
        yield from self._means()
        yield self._rates("accuracy")
        for quantity in ("defense_rate", "defense_rate_source_fooled", "accuracy_on_common"):
            if self._figures.has(quantity):
                yield self._rates(quantity)
        if any(target["attack"] is not None for target in self._targets):
            yield self._attack()
            yield from self._success_by_queries()
        for measure in MEASURES:
            yield from self._uncertainty(measure)
        if self._values["comparisons"]:
            yield self._paired_tests()
        yield self._books()

    def _table(self, key: str, title: str, note: str, columns: Sequence[str], rows: Sequence[Row], text_columns: int = 1) -> Table:
        number = sum(row.kind == "target" for row in rows)
        return Table(f"{self._section}-{key}", title, note, tuple(columns), tuple(rows), text_columns, number > _LONG_TABLE)

    def _rates(self, quantity: str) -> Table:
        title, note = _TITLES[quantity]
        conditions = [CLEAN, *self._conditions] if quantity == "accuracy" else list(self._conditions)
        if quantity == "defense_rate_source_fooled":  # random noise has no source
            conditions = [name for name in conditions if name in self._values["source"]["is_source_fooled"]]
        if any(figure.condition == WORST_CASE and figure.quantity == quantity for figure in self._figures.all):
            conditions += [] if WORST_CASE in conditions else [WORST_CASE]
        paper = accuracy_in_paper(self._values, conditions) if quantity == "accuracy" else None
        if paper is not None:
            note += f" {paper.note}"
        return self._grid(quantity, f"{title}, %", f"{note} {INTERVAL}", _columns(conditions, quantity), paper)

    def _folders(self) -> Table:
        columns = {
            f"{name}: {one.replace('_', ' ')}": (name, one) for name, quantities in self._figures.folders.items() for one in quantities
        }
        note = (
            "Share of the images of each folder. In a cue conflict, shape and texture are of different classes, and a decision is for "
            f"either or for neither; the shape bias is the share of shape decisions among those for either. {INTERVAL}"
        )
        return self._grid("folders", "Texture against shape, %", note, columns)

    def _means(self) -> Iterator[Table]:
        groups = condition_groups(self._values)
        if self._figures.has(MEAN_ERROR):
            shown = dict.fromkeys(one.condition for one in self._figures.all if one.quantity == MEAN_ERROR and one.condition)
            note = (
                "Mean error over the severities of each corruption, and over the corruptions; not divided by the errors of another "
                "network. Brackets: 95 % intervals of a mean over images."
            )
            yield self._grid("errors", "Mean corruption error, %", note, {"mean": ("", MEAN_ERROR), **_columns([*shown], MEAN_ERROR)})
        if groups:
            note = "Mean accuracy over the conditions of each group; the same images under each, so that there is no simple interval."
            yield self._grid("means", "Mean accuracy, %", note, _columns(list(groups), "mean_accuracy"))

    def _grid(self, key: str, title: str, note: str, shown: _Columns, paper: PaperTable | None = None) -> Table:
        """Return a table of targets by conditions, or of conditions by targets if there are many conditions.

        Args:
            key: Key of the table within the section.
            title: Its title.
            note: The note below that.
            shown: The condition and the quantity of each column.
            paper: Rows of the paper.
        """
        # A member has no mutual information: it has no row then.
        targets = [
            target for target in self._targets if any(one in RATES or self._figures.has(one, target["name"]) for _, one in shown.values())
        ]
        heads = [_name(target) for target in targets]
        figures = [[self._figures.get(target["name"], *column) for column in shown.values()] for target in targets]
        counts = {figure.n for row in figures for figure in row if figure.n is not None}
        if len(counts) == 1:
            note += f" n = {next(iter(counts)):,}."
        papers = [] if paper is None else [(network, self._paper_figures(paper, network, shown)) for network in paper.rows]
        if len(shown) > _MOST_COLUMNS:
            columns = ["condition", *(head.text for head in heads), *(f"{network} (paper)" for network, _ in papers)]
            lines = zip(*figures, *(own for _, own in papers), strict=True)
            rows = [
                Row((Cell(condition, key=condition), *(cell_from_figure(figure, with_n=len(counts) > 1) for figure in line)))
                for condition, line in zip(shown, lines, strict=True)
            ]
            return self._table(key, title, note, columns, rows)
        # A column of n, if it is the same in each row.
        own = [{figure.n for figure in row if figure.n is not None} for row in figures]
        has_column = len(counts) > 1 and all(len(numbers) <= 1 for numbers in own)
        rows = []
        for head, row, numbers in zip(heads, figures, own, strict=True):
            n = [_count_cell(next(iter(numbers))) if numbers else Cell(MISSING, is_missing=True)] if has_column else []
            with_n = len(counts) > 1 and not has_column
            rows.append(Row((head, *n, *(cell_from_figure(figure, with_n=with_n) for figure in row))))
        for network, line in papers:
            rows.append(Row((_paper_name(network, paper), *([Cell("")] * has_column), *map(cell_from_figure, line)), "paper"))
        return self._table(key, title, note, ["target", *(["n"] if has_column else []), *shown], rows)

    def _paper_figures(self, paper: PaperTable, network: str, shown: _Columns) -> list[Figure]:
        figures = [paper.figure(network, str(self._values["name"]), *column) for column in shown.values()]
        self.paper_figures += figures
        return figures

    def _attack(self) -> Table:
        quantities = ("skipped", "attacked", "attack_success", "s_m", "median_queries", "censored")
        rows = [
            Row((_name(target), *(cell_from_figure(self._figures.get(target["name"], "", quantity)) for quantity in quantities)))
            for target in self._targets
        ]
        epsilons = {target["attack"]["epsilon"] for target in self._targets if target["attack"] is not None}
        limit = next(iter(epsilons)) if len(epsilons) == 1 else None
        success = "at any distance" if limit is None else f"within a norm of {number_text(limit)}"
        note = (
            f"Success: share of the attacked images with a verified adversarial example {success}. Skipped: wrong without an attack. "
            "S(M): median of the mean squared perturbation; images without an example count as infinite, and ∞ means that they are half or "
            "more. Median queries: of the successes. "
            "Censored: the budget was spent without success. Brackets: Wilson 95 % intervals; for S(M), bootstrap."
        )
        paper = score_in_paper(self._values)
        if paper is not None:
            for network in paper.rows:
                figure = paper.figure(network, str(self._values["name"]), "", "s_m")
                self.paper_figures.append(figure)
                blanks = [Cell("")] * 3
                rows.append(Row((_paper_name(network, paper), *blanks, cell_from_figure(figure), *blanks[:2]), "paper"))
            note += f" {paper.note}"
        columns = ("target", "skipped", "attacked", "success, %", "S(M)", "median queries", "censored")
        return self._table("attack", "Attack", note, columns, rows)

    def _success_by_queries(self) -> Iterator[Table]:
        curves = {target["name"]: target["attack"]["queries_curve"] for target in self._targets if target["attack"] is not None}
        last = max((curve[-1][0] for curve in curves.values() if curve), default=0)
        steps = [step for step in _QUERY_STEPS if step < last] + [int(last)] * (last > 0)
        if not steps:
            return
        rows = [Row((Cell(name, key=name), *(_percent_cell(_step_value(curve, step)) for step in steps))) for name, curve in curves.items()]
        note = "Share of the attacked images that are broken after so many queries each."
        yield self._table("queries-curve", "Success by queries, %", note, ["target", *(f"{step:,}" for step in steps)], rows)

    def _uncertainty(self, measure: str) -> Iterator[Table]:
        name = _MEASURE_NAMES[measure]
        quantity = f"auroc_{measure}"
        if self._figures.has(quantity):
            note = (
                f"Area under the ROC curve of {name} as a detector: clean against perturbed images; 0.5 is chance. Brackets: DeLong 95 %."
            )
            yield self._grid(f"auroc-{measure}", f"AUROC of {name}", note, _columns(self._perturbed(), quantity))
        rejections = []
        for target in self._targets:
            for condition, measures in target["uncertainty"].items():
                curve = (measures.get(measure) or {}).get("rejection")
                if curve:
                    names = (Cell(target["name"], key=target["name"]), Cell(condition, key=condition))
                    rejections.append(Row((*names, *(_percent_cell(_line_value(curve, share)) for share in _REJECTED))))
        if rejections:
            note = f"Accuracy of the rest when the images with the highest {name} are rejected."
            columns = ["target", "condition", *(f"{100 * share:.0f} % rejected" for share in _REJECTED)]
            yield self._table(f"rejection-{measure}", f"Accuracy with rejection by {name}, %", note, columns, rejections, text_columns=2)

    def _perturbed(self) -> list[str]:
        """Return the conditions under which uncertainty was measured, without the clean one."""
        found = dict.fromkeys(condition for target in self._targets for condition in target["uncertainty"])
        return [condition for condition in found if condition != CLEAN]

    def _paired_tests(self) -> Table:
        rows = []
        for test in self._values["comparisons"]:
            keys = (test["a"], test["condition"])
            numbers = [self._figures.get(*keys, quantity, test["b"]) for quantity in ("only_a", "only_b", "mcnemar_p")]
            names = (Cell(test["a"], key=test["a"]), Cell(test["b"], key=test["b"]), Cell(test["condition"], key=test["condition"]))
            rows.append(Row((*names, *map(cell_from_figure, numbers), _count_cell(test["n"]))))
        note = (
            "McNemar's exact test, two-sided, on the same images: whether A and B are correct equally often. "
            f"The p-values are not adjusted for the {len(rows):,} test{'' if len(rows) == 1 else 's'}."
        )
        return self._table("paired", "Paired tests", note, ("A", "B", "condition", "only A correct", "only B correct", "p", "n"), rows, 3)

    def _books(self) -> Table:
        rows = []
        for target in self._targets:
            figures = [self._figures.get(target["name"], "", quantity) for quantity in QUERY_COUNTS]
            rest = figures[0].value - sum(figure.value or 0 for figure in figures[1:]) if figures[0].value is not None else 0
            balance = Cell("balanced", key=0) if rest == 0 else Cell(f"{rest:+,.0f}", key=rest)
            rows.append(Row((Cell(target["name"], key=target["name"]), *map(cell_from_figure, figures), balance)))
        note = (
            "Images sent to each target. Sent is the sum of the others: counted (the probe's own; only these are budgeted), "
            "verification (adversarial examples sent again), sanity checks, retried after failures, repeated after interruptions."
        )
        return self._table("books", "Queries", note, ("target", *QUERY_COUNTS, "balance"), rows)


def _columns(conditions: Sequence[str], quantity: str) -> _Columns:
    return {condition: (condition, quantity) for condition in conditions}


def _name(target: Any) -> Cell:
    role = target["role"] + (f" of {', '.join(target['members'])}" if target["members"] else "")
    failed = () if target["failure"] is None else ("failed: see the top",)
    return Cell(target["name"], (role, *failed), target["name"])


def _paper_name(network: str, paper: PaperTable | None) -> Cell:
    return Cell(network, () if paper is None else (f"paper, {paper.where}",), network)


def _count_cell(count: int) -> Cell:
    return Cell(f"{count:,}", key=count)


def _percent_cell(value: float | None) -> Cell:
    return Cell(MISSING, is_missing=True) if value is None else Cell(f"{100 * value:.1f}", key=value)


def _step_value(curve: Sequence[Sequence[float]], at: float) -> float | None:
    """Return the value of a step curve, which is constant after its last point."""
    return next((y for x, y in reversed(curve) if x <= at), None)


def _line_value(curve: Sequence[Sequence[float]], at: float) -> float | None:
    """Return the value of a curve between its points; None after its last point."""
    for (x0, y0), (x1, y1) in zip(curve, [*curve[1:], curve[-1]], strict=True):
        if x0 <= at <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return None
