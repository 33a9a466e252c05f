"""Charts as Vega-Lite made by Altair, and as SVG.

Colours are CSS variables of the page, so that one chart serves a light and a dark page; `svg_from_chart` replaces them by the light ones.
Colour is never the only difference between series: lines differ in their dashes, and points in their shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .._exceptions import MissingExtraError
from .model import Chart

# At least 3:1 on light pages, and apart for the common forms of colour blindness (after Okabe and Ito). page.css has the dark ones.
LIGHT = ("#0072b2", "#c44e00", "#00795c", "#a4488f", "#7a6a00", "#4a4a4a", "#2f8fc4", "#8a3324")
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
SERIES_COLOURS = [f"var(--series-{number})" for number in range(1, len(LIGHT) + 1)]
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_WIDTH, _HEIGHT = 640, 280
Series = Mapping[str, int]
"""Index of the colour, dashes and shape of each series, in the order of the legend."""
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
    **{"labelColor": "currentColor", "labelFontSize": 12, "title": None, "orient": "top"},
    **{"symbolStrokeWidth": 2, "symbolOpacity": 1, "symbolSize": 60, "offset": 6},
}


def require_charts(extra: str = "probes") -> None:
    """Raise `MissingExtraError`, which names the extra, unless the packages that draw charts and pages are installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"charts and HTML reports need the extra `{extra}` ({error}): pip install 'defensemble[{extra}]'. "
            "Reports in Markdown (.md) and CSV (.csv) do not."
        ) from error


def series_of(names: Sequence[str]) -> Series:
    """Return the series of these names: the same order gives the same colours in every chart."""
    return {name: index % len(SERIES_COLOURS) for index, name in enumerate(names)}


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


def altair_module() -> Any:
    """Return Altair, whose types are stricter than its schema."""
    import altair

    return altair


def _vegalite_version() -> str:
    """Return Altair's version of Vega-Lite as vl-convert names it, such as 6.4."""
    return ".".join(altair_module().SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def make_chart(id: str, title: str, alt: str, layers: Any, *, height: int = _HEIGHT, columns: int = 2, label_limit: int = 145) -> Chart:
    """Return a chart that fits the width of the page.

    Args:
        id: Unique within the report.
        title: Its title.
        alt: What it shows, and where its numbers are.
        layers: The chart of Altair.
        height: Height in pixels.
        columns: Columns of the legend.
        label_limit: Longest label of the legend in pixels.
    """
    # Without container sizes, Vega-Lite would draw a chart of fixed width, which does not fit a phone.
    chart = layers.properties(width="container", height=height, description=alt, autosize={"type": "fit-x", "contains": "padding"})
    spec = chart.configure(**{**_CONFIG, "legend": {**_LEGEND, "columns": columns, "labelLimit": label_limit}}).to_dict()
    return Chart(id, title, alt, _with_xml_texts(spec))


def _with_xml_texts(value: Any) -> Any:
    """Return a specification whose texts have no characters that XML forbids: vl-convert would end the process."""
    if isinstance(value, str):
        return _NOT_XML.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {key: _with_xml_texts(one) for key, one in value.items()}
    return [_with_xml_texts(one) for one in value] if isinstance(value, list) else value


def data_of(records: Sequence[Mapping[str, Any]]) -> Any:
    """Return the records as the data of a chart."""
    alt = altair_module()
    return alt.Data(values=[dict(record) for record in records])


def series_encodings(records: Sequence[Mapping[str, Any]], series: Series) -> tuple[Any, Any, Any]:
    """Return colour, dash and shape by `target`, the name of a series, with one domain each, so that they share one legend.

    Args:
        records: What is shown.
        series: All series.
    """
    alt = altair_module()
    shown = {record["target"] for record in records}
    targets = [name for name in series if name in shown]
    cycled = [series[name] for name in targets]
    scale = {"domain": targets}
    return (
        alt.Color("target:N", scale=alt.Scale(**scale, range=[SERIES_COLOURS[index] for index in cycled])),
        alt.StrokeDash("target:N", scale=alt.Scale(**scale, range=[_DASHES[index] for index in cycled])),
        alt.Shape("target:N", scale=alt.Scale(**scale, range=[_SHAPES[index] for index in cycled])),
    )


def curves(
    records: Sequence[Mapping[str, Any]],
    series: Series,
    x: str,
    y: str,
    *,
    tooltip: Sequence[Any] = (),
    x_scale: Mapping[str, Any] | None = None,
    y_scale: Mapping[str, Any] | None = None,
    x_axis: Mapping[str, Any] | None = None,
    step: bool = False,
    points: bool = True,
    detail: str | None = None,
) -> Any:
    """Return lines of `y` over `x` for each series, with bands from `low` to `high` where there are these.

    Args:
        records: Values of `target` (the name of a series), `x`, `y`, `low` and `high`.
        series: All series.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        tooltip: What a point shows.
        x_scale: Scale of the horizontal axis.
        y_scale: Scale of the vertical axis.
        x_axis: Properties of the horizontal axis.
        step: Whether a value holds until the next one.
        points: Whether there are points.
        detail: A field of the records; a line ends where its value changes. None: it never does.
    """
    alt = altair_module()
    colour, dash, shape = series_encodings(records, series)
    if points:
        dash = dash.legend(None)  # the legend would draw the outlines of its points dashed
    horizontal = alt.X("x:Q", title=x, axis=alt.Axis(grid=False, tickCount=6, **x_axis or {}), scale=alt.Scale(**x_scale or {}))
    vertical = alt.Y("y:Q", title=y, axis=alt.Axis(tickCount=5), scale=alt.Scale(**y_scale or {}))
    base, interpolate = alt.Chart(data_of(records)), "step-after" if step else "linear"
    line = base.mark_line(strokeWidth=2, interpolate=interpolate, aria=False)
    layers = [line.encode(horizontal, vertical, colour, dash, *([] if detail is None else [alt.Detail(f"{detail}:N")]))]
    if any(record.get("low") is not None for record in records):
        band = base.mark_area(opacity=0.12, interpolate=interpolate, aria=False)
        layers.insert(0, band.encode(horizontal, alt.Y("low:Q", title=y), alt.Y2("high:Q"), colour))
    if points:
        dots = base.mark_point(filled=True, size=45, opacity=1, aria=False)
        layers.append(dots.encode(horizontal, vertical, colour, shape, tooltip=list(tooltip)))
    return alt.layer(*layers).resolve_legend(strokeDash="independent" if points else "shared")
