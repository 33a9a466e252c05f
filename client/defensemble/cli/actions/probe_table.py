"""The table that `defensemble probe` prints, from the JSON of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from ...probes.suite import WORST_CASE
from ..cells import cell

_FEW_IMAGES = 30  # their Wilson 95 % interval can be 34 points wide
_LONGEST_LIST = 4  # models that a note names
_MOST_COLUMNS = 12
_MOST_WIDTH = 59  # of all columns but the first
Report = Mapping[str, Any]


def result_table(report: Report) -> Table:
    """Return accuracies over all images in percent, a row per model (or, if that is too wide, per condition).

    The columns are clean, each condition and, of the probe adaptive, the worst case of each image, from which its verdict follows.
    """
    is_attack = any(target["attack"] is not None for target in report["targets"])
    has_worst_case = any("worst_case" in target["details"] for target in report["targets"])
    columns = _columns(report["conditions"])
    headers = ["model", "clean", *columns, *([WORST_CASE] if has_worst_case else []), *(["S(M)", "queries"] if is_attack else [])]
    rows = []
    for target in report["targets"]:
        rates = {entry["name"]: entry["accuracy"] for entry in target["conditions"]}
        cells = [_percent(target["clean"]), *(_mean(rates[name] for name in names) for names in columns.values())]
        if has_worst_case:
            cells.append(_percent(target["details"].get("worst_case")))
        rows.append([cell(target["name"]), *cells, *(_attack_cells(target["attack"]) if is_attack else [])])
    if sum(max(len(header), 4) + 1 for header in headers[1:]) > _MOST_WIDTH:  # a row per condition instead
        headers, *rows = ([*column] for column in zip(["condition", *headers[1:]], *rows, strict=True))
    # Narrow enough for eleven numbers and a name of 20 letters in 80 columns.
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    table.add_column(headers[0], overflow="fold", max_width=40)
    for header in headers[1:]:
        table.add_column(header, justify="right", overflow="fold", min_width=4)
    for row in rows:
        table.add_row(*row)
    return table


def folder_table(report: Report) -> Table:
    """Return the rates of a probe of folders in percent, a row per model and folder, with their Wilson intervals."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
    for header in ("model", "images", "folder"):
        table.add_column(header, overflow="fold")
    for header in ("n", "accuracy", "shape", "texture", "neither", "shape bias"):
        table.add_column(header, justify="right")
    for target in report["targets"]:
        if not target["details"]:
            table.add_row(cell(target["name"]), "-")
        for entry in target["details"].get("folders", ()):
            shown = [entry.get(name) for name in ("accuracy", "shape", "texture", "neither", "shape_bias")]
            n = next(rate["n"] for rate in shown if rate is not None)
            texts = ["" if rate is None else _percent(rate) for rate in shown[:-1]]
            table.add_row(cell(target["name"]), entry["kind"], cell(Path(entry["name"]).name), str(n), *texts, _with_interval(shown[-1]))
    return table


def _with_interval(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate["value"] is None:
        return "" if rate is None else "-"
    return f"{_format(rate['value'])} ({_format(rate['low'])}-{_format(rate['high'])})"


def caption(report: Report) -> str:
    """Return what the numbers of the table are."""
    n = report["data"]["n"]
    if any(target["attack"] is not None for target in report["targets"]):
        return (
            f"accuracy: of all {n} images, correct when clean and without an adversarial example within the bound ({report['norm']}); "
            "S(M): median of the mean-square perturbations; queries: median of the successful attacks"
        )
    rates = [rate for target in report["targets"] for rate in (target["clean"], *(entry["accuracy"] for entry in target["conditions"]))]
    halves = [(rate["high"] - rate["low"]) / 2 for rate in rates if rate is not None and rate["high"] is not None]
    return f"accuracy: of all {_counted(n, 'image')}" + (
        f"; half-widths of the Wilson 95 % intervals: up to {100 * max(halves):.1f} points" if halves else ""
    )


def _columns(conditions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the names of the conditions of each column: one each or, if that is too wide, the groups of conditions."""
    if len(conditions) <= _MOST_COLUMNS:
        prefix = _common_prefix([condition["name"] for condition in conditions])
        # Of a suite, whose conditions are `PROBE: CONDITION`, the probe: five whole names do not fit into 80 columns.
        return {condition["name"].removeprefix(prefix).partition(": ")[0]: [condition["name"]] for condition in conditions}
    groups: dict[str, list[str]] = {}
    for condition in conditions:
        groups.setdefault(condition["group"], []).append(condition["name"])
    return groups


def _common_prefix(names: Sequence[str]) -> str:
    """Return the words that all names begin with, such as `sigma `; nothing for a single name."""
    words = [name.split(" ")[:-1] for name in names]
    return " ".join([*words[0], ""]) if len(names) > 1 and words[0] and all(each == words[0] for each in words) else ""


def _attack_cells(attack: Mapping[str, Any] | None) -> list[str]:
    if attack is None:
        return ["-", "-"]
    score, queries = attack["s_m"], attack["median_queries"]
    shown = "-" if score is None or score["value"] is None else f"{score['value']:.2g}"
    return [shown, "-" if queries is None else f"{queries:,.0f}"]


def _mean(rates: Iterable[Mapping[str, Any] | None]) -> str:
    values = [rate["value"] for rate in rates if rate is not None and rate["value"] is not None]
    return _format(sum(values) / len(values)) if values else "-"


def _percent(rate: Mapping[str, Any] | None) -> str:
    return "-" if rate is None or rate["value"] is None else _format(rate["value"])


def _format(value: float) -> str:
    return "100" if value == 1 else f"{100 * value:.1f}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def warning_of_few_images(report: Report) -> str | None:
    """Explain why all models classify few images correctly: fewer than 30, or fewer than half of all."""
    n, common, targets = report["data"]["n"], report["data"]["n_common"], report["targets"]
    if common is None or common >= max(_FEW_IMAGES, n / 2):
        return None
    models = f"all {len(targets)} models" if len(targets) > 1 else targets[0]["name"]
    verb = "is" if common == 1 else "are"
    text = f"only {common} of {_counted(n, 'image')} {verb} classified correctly by {models} when clean, for accuracy_on_common"
    correct = {target["name"]: target["clean"]["successes"] for target in targets if target["clean"] is not None}
    weak = sorted((name for name, count in correct.items() if count < n / 2), key=lambda name: correct[name])
    strong = [name for name in correct if name not in weak]
    if weak and strong:
        counts = ", ".join(f"{name}: {correct[name]}" for name in weak[:_LONGEST_LIST]) + ", ..." * (len(weak) > _LONGEST_LIST)
        kept = " ".join(f"--target {name}" for name in strong[:_LONGEST_LIST]) + " ..." * (len(strong) > _LONGEST_LIST)
        return f"{text}; correct: {counts}. Leave {'it' if len(weak) == 1 else 'them'} out with {kept}."
    if weak:
        most = f"; none classifies more than {max(correct.values())}" if len(correct) > 1 else ""
        return f"{text}{most}. Check that the models were trained on such images, and that the labels are right."
    if common < n / 2:
        return f"{text}, because they fail on different images. Compare fewer models with --target."
    return f"only {_counted(n, 'image')}: the intervals are wide. Use more images."
