"""The charts of a report on a load test."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .._exceptions import InputError, MissingExtraError
from ..load.display import load_of, load_text
from ..load.result import LoadResult, Step, TargetResult
from .charts import SERIES_COLOURS, altair_module, curves, data_of, make_chart, require_charts, series_of
from .load_tables import QUANTILES, has_enough_calls
from .model import Chart

_BINS_PER_DECADE = 20
_ROW_HEIGHT = 44
_BAR_HEIGHT = 36
_TOLERANCE_S = 0.05
_MOST_POINTS = 120  # seconds, above which lines have no points
_LONG_LABEL = 280  # pixels, which a phone has
_LEAST_MS = 0.001  # a logarithm of 0 has no place on an axis
_MOST_HORIZONTAL = 4  # names of steps, which a phone has space for
_INTEGERS = {"tickMinStep": 1}
_Value = Callable[[Step], "float | None"]


def charts_by_part(result: LoadResult, names: Sequence[str]) -> dict[str, list[Chart]]:
    """Return the charts by the id of their section, or of the overview.

    Args:
        result: The result.
        names: The names of the targets.

    Raises:
        MissingExtraError: The extra `load` is not installed.
    """
    require_charts("load")
    try:
        import hdrh  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"charts of load tests need the extra `load` ({error}): pip install 'defensemble[load]'") from error
    charts = {"overview": list(_against_load(result, names))}
    for index, target in enumerate(result.targets, 1):
        charts[f"s{index}"] = [*_timelines(f"s{index}", target), *_histogram(f"s{index}", target), *_failures(f"s{index}", target)]
    return charts


def _against_load(result: LoadResult, names: Sequence[str]) -> Iterator[Chart]:
    """Yield what is drawn against the load: of one target all quantiles in one chart, of several targets a chart for each quantile."""
    named = list(zip(names, result.targets, strict=True))
    if all(len({load_of(step) for step in target.steps}) < 2 for target in result.targets):
        return
    is_closed = result.settings.loop == "closed"
    x, x_axis = ("callers", _INTEGERS) if is_closed else ("calls per second", None)
    slo = result.settings.slo
    values: dict[str, _Value] = {label: partial(_quantile, key) for key, label in QUANTILES.items()}
    throughput: dict[str, _Value] = {"answered": lambda step: step.requests_per_s}
    if slo is not None:
        throughput["goodput"] = lambda step: step.goodput_per_s
    for key, y, own in (("latency", "latency, ms", values), ("throughput", "calls per second", throughput)):
        if len(named) == 1:
            lines = {"": [(label, named[0][1], value) for label, value in own.items()]}
        else:
            lines = {label: [(name, target, value) for name, target in named] for label, value in own.items()}
        for number, (label, members) in enumerate(lines.items(), 1):
            records = [record for member in members for record in _records(*member)]
            if not records:
                continue
            series = series_of([name for name, _, _ in members])
            title = f"{key.capitalize()} against load{f': {label}' if label else ''}"
            alt = f"Lines of {', '.join(series)}: {y} against {x}. The table Overview has the numbers."
            scale = _log_scale(record["y"] for record in records) if key == "latency" else None
            layers = curves(records, series, x, y, tooltip=_tooltip(y), x_scale={"zero": True}, y_scale=scale, x_axis=x_axis)
            if slo is not None and scale is not None and scale["domain"][0] < slo.latency_ms < scale["domain"][1]:
                layers = altair_module().layer(_rule(slo.latency_ms), layers)
                title += f"; the grey line is {slo.latency_ms:g} ms"
            layout = {"columns": 4} if len(named) == 1 else {"columns": 1, "label_limit": _LONG_LABEL}
            yield make_chart(f"overview-{key}-{number}", title, alt, layers, **layout)


def _quantile(key: str, step: Step) -> float | None:
    return float(getattr(step.latency_ms, key)) if step.latency_ms is not None and has_enough_calls(key, step.answered) else None


def _log_scale(values: Iterable[float | None]) -> dict[str, Any]:
    """Return a logarithmic scale with some space around the values."""
    shown = [max(value, _LEAST_MS) for value in values if value is not None]
    return {"type": "log", "nice": False, "clamp": True, "domain": [min(shown) / 1.25, max(shown) * 1.25]}


def _records(series: str, target: TargetResult, value: _Value) -> list[dict[str, Any]]:
    return [
        {"target": series, "x": load_of(step), "y": y, "condition": load_text(step)}
        for step in target.steps
        if step.valid and (y := value(step)) is not None
    ]


def _tooltip(y: str) -> list[Any]:
    alt = altair_module()
    return [alt.Tooltip("target:N", title="line"), alt.Tooltip("condition:N", title="load"), alt.Tooltip("y:Q", title=y, format=",.4~r")]


def _rule(y: float) -> Any:
    alt = altair_module()
    return alt.Chart(data_of([{"y": y}])).mark_rule(strokeWidth=1.5, color="currentColor", opacity=0.5, aria=False).encode(alt.Y("y:Q"))


def _timelines(section: str, target: TargetResult) -> Iterator[Chart]:
    """Yield throughput and latency per second, with the steps one after another."""
    counts: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    starts: list[dict[str, Any]] = []
    start = 0
    for index, step in enumerate(target.steps):
        load = load_text(step)
        starts.append({"x": start, "text": load})
        # In a last second that is not whole, there are fewer calls.
        whole = [second for second in step.timeline if second.s + 1 <= step.seconds + _TOLERANCE_S] or list(step.timeline)
        for second in whole:
            record = {"x": start + second.s, "condition": load, "step": index}
            counts += [{**record, "target": key, "y": getattr(second, key)} for key in ("sent", "answered", "failed")]
            p99_ms = second.p99_ms if has_enough_calls("p99", second.answered) else None
            latencies = {"p50": second.p50_ms, "p99": p99_ms, "max": second.max_ms} if step.valid else {}
            times += [{**record, "target": key, "y": value} for key, value in latencies.items()]  # None breaks the line
        start += 1 + max((second.s for second in whole), default=0)
    with_values = {record["target"] for record in times if record["y"] is not None}
    times = [record for record in times if record["target"] in with_values]
    x = "time, s (warm-ups left out)"
    for key, title, y, records in (
        ("calls", "Calls per second", "calls per second", counts),
        ("times", "Latency per second", "latency, ms", times),
    ):
        if records:
            scale = _log_scale(record["y"] for record in records) if key == "times" else None
            series = series_of(list(dict.fromkeys(record["target"] for record in records)))
            layers = curves(
                records,
                series,
                x,
                y,
                tooltip=_tooltip(y),
                y_scale=scale,
                points=start <= _MOST_POINTS,
                detail="step",
                x_scale={"domain": [0, start]},
                x_axis=_INTEGERS,
            )
            alt = f"Lines of {', '.join(series)} over {start} seconds of {len(starts)} steps. The table Timeline has the numbers."
            yield make_chart(f"{section}-{key}", title, alt, _with_step_marks(starts, layers), columns=3)


def _with_step_marks(starts: Sequence[Mapping[str, Any]], layers: Any) -> Any:
    """Return a chart with a line where a step starts, and its load on an axis above the chart."""
    alt = altair_module()
    values, texts = ([start[key] for start in starts] for key in ("x", "text"))
    direction = {"labelAlign": "left", "labelOffset": -2} if len(starts) <= _MOST_HORIZONTAL else {"labelAngle": 270}
    label = f"{texts}[indexof({values}, datum.value)]"
    axis = alt.Axis(orient="top", values=values, labelExpr=label, grid=False, ticks=False, domain=False, **direction)
    marks = alt.Chart(data_of(starts)).mark_rule(color="currentColor", opacity=0.25, aria=False).encode(alt.X("x:Q", title=None, axis=axis))
    return alt.layer(marks, layers).resolve_axis(x="independent")


def _histogram(section: str, target: TargetResult) -> Iterator[Chart]:
    """Yield the histogram of each step in a row of its own, on one logarithmic axis."""
    alt = altair_module()
    steps = [step for step in target.steps if step.valid and step.histogram is not None]
    records = []
    for row, step in enumerate(steps):
        counts = _binned(str(step.histogram))
        largest, total = max(counts.values()), sum(counts.values())
        for index, count in counts.items():
            low, high = (10 ** ((index + offset) / _BINS_PER_DECADE) / 1000 for offset in (0, 1))
            height = {"y": row + 1, "top": row + 1 - 0.9 * count / largest}
            records.append({"low": low, "high": high, **height, "condition": load_text(step), "share": 100 * count / total})
    if not records:
        return
    labels = f"[{', '.join(repr(load_text(step)) for step in steps)}][datum.value - 1]"
    axis = alt.Axis(values=list(range(1, len(steps) + 1)), labelExpr=labels, labelBaseline="bottom", grid=True, ticks=False, domain=False)
    tooltip = [
        alt.Tooltip("condition:N", title="load"),
        *(alt.Tooltip(f"{key}:Q", title=f"{title}, ms", format=",.3~r") for key, title in (("low", "from"), ("high", "to"))),
        alt.Tooltip("share:Q", title="% of the answers", format=".1f"),
    ]
    bars = (
        alt.Chart(data_of(records))
        .mark_rect(color=SERIES_COLOURS[0], aria=False)
        .encode(
            alt.X("low:Q", title="latency, ms", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(grid=False, tickCount=5)),
            alt.X2("high:Q"),
            alt.Y("y:Q", title=None, scale=alt.Scale(domain=[len(steps), 0], nice=False), axis=axis),
            alt.Y2("top:Q"),
            tooltip=tooltip,
        )
    )
    alt_text = (
        f"Histograms of the latencies of {len(steps)} steps, one row each, on a logarithmic axis; each row has its own height. "
        "The table Latency has the quantiles."
    )
    yield make_chart(f"{section}-histogram", "Histogram of latencies", alt_text, bars, height=max(3, len(steps)) * _ROW_HEIGHT)


def _binned(encoded: str) -> dict[int, int]:
    """Return the number of answers by the index of a bin, of an HdrHistogram in microseconds."""
    from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
    from hdrh.histogram import HdrHistogram

    try:
        histogram = HdrHistogram.decode(encoded)
    except (ValueError, zlib.error, HdrCookieException, HdrHistogramSettingsException, HdrLengthException) as error:
        raise InputError(f"the histogram of a step is damaged ({error}): measure again with `defensemble load --json FILE`") from error
    counts: dict[int, int] = {}
    for item in histogram.get_recorded_iterator():
        index = math.floor(math.log10(max(1, item.value_iterated_to)) * _BINS_PER_DECADE)
        counts[index] = counts.get(index, 0) + item.count_added_in_this_iter_step
    return counts


def _failures(section: str, target: TargetResult) -> Iterator[Chart]:
    alt = altair_module()
    records = [
        {"row": f"{load_text(step)}\n{kind}", "kind": kind, "condition": load_text(step), "y": 100 * count / step.sent, "count": count}
        for step in target.steps
        for kind, count in sorted(step.failures.items(), key=lambda item: -item[1])
        if step.sent
    ]
    if not records:
        return
    rows = [record["row"] for record in records]
    tooltip = [
        *(alt.Tooltip(f"{key}:N", title=title) for key, title in (("condition", "load"), ("kind", "error"))),
        alt.Tooltip("count:Q", title="calls", format=","),
        alt.Tooltip("y:Q", title="% of sent", format=".1f"),
    ]
    bars = (
        alt.Chart(data_of(records))
        .mark_bar(color=SERIES_COLOURS[1], height=12, aria=False)
        .encode(
            alt.X("y:Q", title="failed, % of sent", axis=alt.Axis(tickCount=5)),
            alt.Y("row:N", sort=rows, title=None, axis=alt.Axis(labelLimit=170, labelExpr="split(datum.label, '\\n')", labelLineHeight=14)),
            tooltip=tooltip,
        )
    )
    loads = len({record["condition"] for record in records})
    alt_text = f"Bars of the failed calls at {loads} loads by kind. The table Failures by kind has the numbers."
    yield make_chart(f"{section}-failures", "Failures by kind", alt_text, bars, height=max(2, len(rows)) * _BAR_HEIGHT)
