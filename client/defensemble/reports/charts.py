"""The charts of a section, as Vega-Lite made by Altair, and as SVG.

Colours are CSS variables of the page, so that one chart serves a light and a dark page; `svg_from_chart` replaces them by the light ones.
Colour is never the only difference between targets: lines differ in their dashes, and points in their shape.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._exceptions import MissingExtraError
from ..probes.base import CLEAN, NOISE
from ..probes.uncertainty import MEASURES
from ..results.intervals import wilson
from .figures import ResultFigures, condition_groups
from .model import Chart, Section

# At least 3:1 on light pages, and apart for the common forms of colour blindness (after Okabe and Ito). page.css has the dark ones.
LIGHT = ("#0072b2", "#c44e00", "#00795c", "#a4488f", "#7a6a00", "#4a4a4a", "#2f8fc4", "#8a3324")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SERIES = [f"var(--series-{number})" for number in range(1, len(LIGHT) + 1)]
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_MOST_REJECTION_CURVES = 3
_WIDTH, _HEIGHT = 640, 280
_LABEL_WIDTH = 20  # characters; the widest have 140 px
_Series = Mapping[str, int]
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_INK = "#1f2328"
_CONFIG = {
    "background": "transparent",
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        **{key: "currentColor" for key in ("labelColor", "titleColor", "domainColor", "tickColor", "gridColor")},
        **{"gridOpacity": 0.14, "domainOpacity": 0.5, "tickOpacity": 0.5, "labelFontSize": 12, "titleFontSize": 12},
        **{"titleFontWeight": "normal", "titlePadding": 8, "labelLimit": 160},
    },
}
_LEGEND = {
    **{"labelColor": "currentColor", "labelFontSize": 12, "labelLimit": 145, "title": None, "orient": "top"},
    **{"symbolStrokeWidth": 2, "symbolOpacity": 1, "symbolSize": 60, "offset": 6},
}


def require_charts() -> None:
    """Raise `MissingExtraError` unless the packages that draw charts and pages are installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"charts and HTML reports need the extra `probes` ({error}): pip install 'defensemble[probes]'. "
            "Reports in Markdown (.md) and CSV (.csv) do not."
        ) from error


def charts_of(section: Section, order: Sequence[str]) -> list[Chart]:
    """Return the charts that a section has values for.

    Args:
        section: The section.
        order: All targets of the report: each has the same colour in every chart.

    Raises:
        MissingExtraError: Altair is not installed.
    """
    require_charts()
    series = {name: index % len(_SERIES) for index, name in enumerate(order)}
    return [*_accuracy_charts(section, series), *_attack_charts(section, series), *_rejection_charts(section, series)]


def svg_from_chart(chart: Chart) -> str:
    """Return a chart as SVG on white, with the light colours."""
    import vl_convert

    spec = json.loads(json.dumps(chart.spec))
    spec["width"], spec["background"] = _WIDTH, "white"
    svg = vl_convert.vegalite_to_svg(spec, vl_version=_vegalite_version())
    colours = {f"var(--series-{number})": colour for number, colour in enumerate(LIGHT, 1)}
    return re.sub(r"var\(--series-\d\)", lambda found: colours[found[0]], svg).replace("currentColor", _INK)


def vega_bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which needs no network."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_vegalite_version())


def _altair() -> Any:
    """Return Altair, whose types are stricter than its schema."""
    import altair

    return altair


def _vegalite_version() -> str:
    """Return Altair's version of Vega-Lite as vl-convert names it, such as 6.4."""
    return ".".join(_altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _chart(section: Section, key: str, title: str, alt: str, layers: Any, *, height: int = _HEIGHT, columns: int = 2) -> Chart:
    # Without container sizes, Vega-Lite would draw a chart of fixed width, which does not fit a phone.
    chart = layers.properties(width="container", height=height, description=alt, autosize={"type": "fit-x", "contains": "padding"})
    spec = chart.configure(**{**_CONFIG, "legend": {**_LEGEND, "columns": columns}}).to_dict()
    return Chart(f"{section.id}-{key}", title, alt, _with_xml_texts(spec))


def _with_xml_texts(value: Any) -> Any:
    """Return a specification whose texts have no characters that XML forbids: vl-convert would end the process."""
    if isinstance(value, str):
        return _NOT_XML.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {key: _with_xml_texts(one) for key, one in value.items()}
    return [_with_xml_texts(one) for one in value] if isinstance(value, list) else value


def _data(records: Sequence[Mapping[str, Any]]) -> Any:
    alt = _altair()
    return alt.Data(values=[dict(record) for record in records])


def _encodings(records: Sequence[Mapping[str, Any]], series: _Series) -> tuple[Any, Any, Any]:
    """Return colour, dash and shape by target: with one domain each, so that they share one legend, in the order of the table."""
    alt = _altair()
    shown = {record["target"] for record in records}
    targets = [name for name in series if name in shown]
    cycled = [series[name] for name in targets]
    scale = {"domain": targets}
    return (
        alt.Color("target:N", scale=alt.Scale(**scale, range=[_SERIES[index] for index in cycled])),
        alt.StrokeDash("target:N", scale=alt.Scale(**scale, range=[_DASHES[index] for index in cycled])),
        alt.Shape("target:N", scale=alt.Scale(**scale, range=[_SHAPES[index] for index in cycled])),
    )


def _percent_axis(field: str, title: str, *, channel: Any) -> Any:
    alt = _altair()
    return channel(f"{field}:Q", title=title, scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5))


def _curves(records: Sequence[Mapping[str, Any]], series: _Series, x: str, y: str, *, step: bool = False, points: bool = True) -> Any:
    """Return lines of `y` over `x` for each target, with bands from `low` to `high` where there are these."""
    alt = _altair()
    colour, dash, shape = _encodings(records, series)
    horizontal = alt.X("x:Q", title=x, axis=alt.Axis(grid=False, tickCount=6))
    vertical = _percent_axis("y", y, channel=alt.Y)
    base, interpolate = alt.Chart(_data(records)), "step-after" if step else "linear"
    line = base.mark_line(strokeWidth=2, interpolate=interpolate, aria=False)
    layers = [line.encode(horizontal, vertical, colour, dash)]
    if any(record.get("low") is not None for record in records):
        band = base.mark_area(opacity=0.12, interpolate=interpolate, aria=False)
        layers.insert(0, band.encode(horizontal, alt.Y("low:Q", title=y), alt.Y2("high:Q"), colour))
    if points:
        dots = base.mark_point(filled=True, size=45, opacity=1, aria=False)
        layers.append(dots.encode(horizontal, vertical, colour, shape, tooltip=_tooltip(records)))
    return alt.layer(*layers)


def _tooltip(records: Sequence[Mapping[str, Any]]) -> list[Any]:
    alt = _altair()
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


def _accuracy_charts(section: Section, series: _Series) -> Iterator[Chart]:
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


def _accuracy_curve(section: Section, series: _Series, key: str, group: str, members: Sequence[Mapping[str, Any]]) -> Chart:
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


def _means_chart(section: Section, series: _Series, groups: Mapping[str, Sequence[str]]) -> Chart:
    """Return a dot plot of the mean accuracy over the conditions of each group."""
    figures = [figure for figure in ResultFigures(section.result).all if figure.quantity == "mean_accuracy" and figure.value is not None]
    records = [{"target": figure.target, "condition": figure.condition, "y": 100 * (figure.value or 0)} for figure in figures]
    count = _counted(section.result.values["targets"])
    alt = (
        f"Points of {count}: mean accuracy in percent over the conditions of {len(groups)} groups. The table Mean accuracy has the numbers."
    )
    return _chart(section, "means", "Mean accuracy", alt, _dots(records, series, list(groups)), height=26 * len(groups), columns=1)


def _dot_plot(section: Section, series: _Series, conditions: Sequence[Mapping[str, Any]]) -> Chart:
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


def _dots(records: Sequence[Mapping[str, Any]], series: _Series, rows: Sequence[str]) -> Any:
    alt = _altair()
    colour, _, shape = _encodings(records, series)
    # Names of conditions may differ only in their ends, so that long ones are wrapped and not cut.
    axis = alt.Axis(grid=True, labelLimit=140, labelExpr="split(datum.label, '\\n')", labelLineHeight=14)
    vertical = alt.Y("row:N", sort=[_wrapped(name) for name in rows], title=None, axis=axis)
    base = alt.Chart(_data([{**record, "row": _wrapped(record["condition"])} for record in records]))
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


def _attack_charts(section: Section, series: _Series) -> Iterator[Chart]:
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


def _rejection_charts(section: Section, series: _Series) -> Iterator[Chart]:
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
