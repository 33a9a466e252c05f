"""The charts of a section on a probe."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..probes.base import CLEAN, NOISE
from ..probes.uncertainty import MEASURES
from ..results.intervals import wilson
from .charts import Series, altair_module, curves, data_of, make_chart, require_charts, series_encodings, series_of
from .figures import ResultFigures, condition_groups
from .model import Chart, ProbeSection

_MOST_REJECTION_CURVES = 3
_LABEL_WIDTH = 20  # characters; the widest have 140 px
_PERCENT = {"domain": [0, 100]}


def charts_of(section: ProbeSection, order: Sequence[str]) -> list[Chart]:
    """Return the charts that a section has values for.

    Args:
        section: The section.
        order: All targets of the report: each has the same colour in every chart.

    Raises:
        MissingExtraError: Altair is not installed.
    """
    require_charts()
    series = series_of(order)
    return [*_accuracy_charts(section, series), *_attack_charts(section, series), *_rejection_charts(section, series)]


def _percent_axis(field: str, title: str, *, channel: Any) -> Any:
    alt = altair_module()
    return channel(f"{field}:Q", title=title, scale=alt.Scale(**_PERCENT), axis=alt.Axis(tickCount=5))


def _chart(section: ProbeSection, key: str, title: str, alt: str, layers: Any, **layout: int) -> Chart:
    return make_chart(f"{section.id}-{key}", title, alt, layers, **layout)


def _curves(records: Sequence[Mapping[str, Any]], series: Series, x: str, y: str, *, step: bool = False, points: bool = True) -> Any:
    return curves(records, series, x, y, tooltip=_tooltip(records) if points else (), y_scale=_PERCENT, step=step, points=points)


def _tooltip(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    alt = altair_module()
    percent = ("y", "low", "high")
    named = {"target": "target", "condition": "condition", "y": "accuracy", "low": "low", "high": "high", "n": "n"}
    present = {key for record in records for key in record}
    return [
        alt.Tooltip(f"{key}:Q", title=title, format=".1f") if key in percent else alt.Tooltip(f"{key}:N", title=title)
        for key, title in named.items()
        if key in present
    ]


def _rate_record(target: str, condition: str, x: float | str, rate: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if rate is not None and rate["value"] is not None:
        percent = {key: 100 * rate[name] for key, name in (("y", "value"), ("low", "low"), ("high", "high"))}
        yield {"target": target, "condition": condition, "x": x, **percent, "n": rate["n"]}


def _accuracy_charts(section: ProbeSection, series: Series) -> Iterator[Chart]:
    values = section.result.values
    if any(target["attack"] is not None for target in values["targets"]):
        return  # the accuracy against the distance shows more
    if means := condition_groups(values):
        yield _means_chart(section, series, means)
        return
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for condition in values["conditions"]:
        groups.setdefault(condition["group"], []).append(condition)
    values_of = {name: {condition["value"] for condition in members} for name, members in groups.items()}
    curves = {name: members for name, members in groups.items() if len(values_of[name]) > 1 and None not in values_of[name]}
    for number, (name, members) in enumerate(curves.items(), 1):
        yield _accuracy_curve(section, series, f"accuracy-{number}", name, members)
    if rest := [condition for name, members in groups.items() if name not in curves for condition in members]:
        yield _dot_plot(section, series, rest)


def _accuracy_curve(section: ProbeSection, series: Series, key: str, group: str, members: Sequence[Mapping[str, Any]]) -> Chart:
    axis = _axis_title(members, group)
    starts_clean = members[0]["unit"] != "" and all(condition["value"] > 0 for condition in members)
    records: list[dict[str, Any]] = []
    targets = section.result.values["targets"]
    for target in targets:
        rates = {condition["name"]: condition["accuracy"] for condition in target["conditions"]}
        if starts_clean:
            records += _rate_record(target["name"], CLEAN, 0, target["clean"])
        for condition in sorted(members, key=lambda condition: condition["value"]):
            records += _rate_record(target["name"], condition["name"], condition["value"], rates.get(condition["name"]))
    names = [target["name"] for target in targets]
    title = f"Accuracy against {axis}" + (f" ({group})" if group and group not in axis else "")
    alt = (
        f"Lines of {_counted(names)} with bands of their 95 % intervals: accuracy in percent against {axis}. "
        "The table Accuracy has the numbers."
    )
    return _chart(section, key, title, alt, _curves(records, series, axis, "accuracy, %"))


def _axis_title(members: Sequence[Mapping[str, Any]], group: str) -> str:
    """Return what the conditions' values are: the words before the number in their names, such as `sigma`, with the unit."""
    words = {re.sub(r"[\s=]*[\d.eE+-]+(/\d+)?$", "", condition["name"]) for condition in members}
    unit = members[0]["unit"]
    return (words.pop() if len(words) == 1 else group) + (f", {unit}" if unit else "")


def _counted(names: Sequence[Any]) -> str:
    return f"{len(names)} target{'' if len(names) == 1 else 's'}"


def _means_chart(section: ProbeSection, series: Series, groups: Mapping[str, Sequence[str]]) -> Chart:
    """Return a dot plot of the mean accuracy over the conditions of each group."""
    figures = [figure for figure in ResultFigures(section.result).all if figure.quantity == "mean_accuracy" and figure.value is not None]
    records = [{"target": figure.target, "condition": figure.condition, "y": 100 * (figure.value or 0)} for figure in figures]
    count = _counted(section.result.values["targets"])
    alt = (
        f"Points of {count}: mean accuracy in percent over the conditions of {len(groups)} groups. The table Mean accuracy has the numbers."
    )
    return _chart(section, "means", "Mean accuracy", alt, _dots(records, series, list(groups)), height=26 * len(groups), columns=1)


def _dot_plot(section: ProbeSection, series: Series, conditions: Sequence[Mapping[str, Any]]) -> Chart:
    targets = section.result.values["targets"]
    records: list[dict[str, Any]] = []
    shown = [CLEAN, *(condition["name"] for condition in conditions)]
    for target in targets:
        rates = {CLEAN: target["clean"], **{condition["name"]: condition["accuracy"] for condition in target["conditions"]}}
        for name in shown:
            records += _rate_record(target["name"], name, name, rates.get(name))
    names = [target["name"] for target in targets]
    alt = (
        f"Points of {_counted(names)} with 95 % intervals: accuracy in percent under {len(shown)} conditions. "
        "The table Accuracy has the numbers."
    )
    return _chart(
        section,
        "conditions",
        "Accuracy by condition",
        alt,
        _dots(records, series, shown),
        height=len(shown) * (12 * len(targets) + 12),
        columns=1,
    )


def _dots(records: Sequence[Mapping[str, Any]], series: Series, rows: Sequence[str]) -> Any:
    alt = altair_module()
    colour, _, shape = series_encodings(records, series)
    # Names of conditions may differ only in their ends, so that long ones are wrapped and not cut.
    axis = alt.Axis(grid=True, labelLimit=140, labelExpr="split(datum.label, '\\n')", labelLineHeight=14)
    vertical = alt.Y("row:N", sort=[_wrapped(name) for name in rows], title=None, axis=axis)
    base = alt.Chart(data_of([{**record, "row": _wrapped(record["condition"])} for record in records]))
    dots = base.mark_point(filled=True, size=45, opacity=1, aria=False)
    encodings = [_percent_axis("y", "accuracy, %", channel=alt.X), vertical, colour, shape]
    if not any("low" in record for record in records):
        return dots.encode(*encodings, tooltip=_tooltip(records))
    # Points with intervals are drawn below one another, since these would overlap.
    offset = alt.YOffset("target:N", sort=list(series))
    bars = base.mark_rule(strokeWidth=1.5, aria=False)
    return alt.layer(
        bars.encode(alt.X("low:Q", title="accuracy, %"), alt.X2("high:Q"), vertical, colour, offset),
        dots.encode(*encodings, offset, tooltip=_tooltip(records)),
    )


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, _LABEL_WIDTH, max_lines=3, placeholder=" ...")) or name


def _attack_charts(section: ProbeSection, series: Series) -> Iterator[Chart]:
    attacks = {target["name"]: target["attack"] for target in section.result.values["targets"] if target["attack"] is not None}
    names = list(attacks)
    queries = [{"target": name, "x": x, "y": 100 * y} for name, attack in attacks.items() for x, y in attack["queries_curve"]]
    if queries:
        alt = (
            f"Steps of {_counted(names)}: share of the attacked images that are broken against queries per image. "
            "The table Success by queries has the numbers."
        )
        layers = _curves(queries, series, "queries per image", "broken, % of attacked", step=True, points=False)
        yield _chart(section, "queries", "Success against queries", alt, layers)
    n = section.result.values["data"]["n"]
    distances = [
        {"target": name, "x": x, "y": 100 * y, **_interval(y, n)} for name, attack in attacks.items() for x, y in attack["distance_curve"]
    ]
    if distances:
        norm = {"l2": "L2 norm", "linf": "L∞ norm"}.get(section.result.values["norm"], "norm")
        alt = (
            f"Steps of {_counted(names)} with bands of their 95 % intervals: accuracy under attack against the largest allowed {norm}. "
            "The table Accuracy has the numbers at the conditions."
        )
        layers = _curves(distances, series, f"largest {norm}", "accuracy, %", step=True, points=False)
        yield _chart(section, "distance", "Accuracy against distance", alt, layers)


def _interval(share: float, n: int) -> dict[str, float]:
    low, high = wilson(round(share * n), n)
    return {"low": 100 * low, "high": 100 * high}


def _rejection_charts(section: ProbeSection, series: Series) -> Iterator[Chart]:
    """Yield accuracy-rejection curves under the last condition of each group, which is the hardest, but not of random noise."""
    targets = section.result.values["targets"]
    measured = dict.fromkeys(condition for target in targets for condition in target["uncertainty"] if condition != CLEAN)
    group_of = {condition["name"]: condition["group"] for condition in section.result.values["conditions"]}
    last = {group: condition for condition in measured if (group := group_of.get(condition, condition)) != NOISE}
    for number, condition in enumerate(list(last.values())[:_MOST_REJECTION_CURVES], 1):
        for measure in MEASURES:
            words = measure.replace("_", " ")
            records, names = [], []
            for target in targets:
                curve = ((target["uncertainty"].get(condition) or {}).get(measure) or {}).get("rejection")
                if curve:
                    names.append(target["name"])
                    records += [{"target": target["name"], "x": 100 * x, "y": 100 * y} for x, y in curve]
            if {record["y"] for record in records} not in ({0.0}, {100.0}, set()):  # else a line along the edge of the chart
                title = f"Accuracy with rejection by {words}, {condition}"
                alt = (
                    f"Lines of {_counted(names)}: accuracy of the rest when the images with the highest {words} are rejected, "
                    f"under {condition}. "
                    f"The table Accuracy with rejection by {words} has the numbers."
                )
                layers = _curves(records, series, "rejected, %", "accuracy of the rest, %", points=False)
                yield _chart(section, f"rejection-{measure.replace('_', '-')}-{number}", title, alt, layers)
