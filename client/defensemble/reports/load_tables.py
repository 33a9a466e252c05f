"""The tables of a report on a load test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..load.display import load_of, load_text, number
from ..load.result import Latency, ModelCounters, RunSettings, Step, TargetResult
from .cells import MISSING
from .model import Cell, Row, Table

QUANTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9"}
"""The names of the quantiles by their fields."""
_LATENCIES = {**QUANTILES, "max": "max", "mean": "mean"}
_LONG_TABLE = 30  # rows, above which the page folds a table
_COUNTERS = ("requests", "executions", "failures", "images", "mean_batch", "queue_ms", "compute_ms", "success_ms")
_NOT_REPORTED = Cell("not reported", is_missing=True)
_NONE = Cell("-")


def target_names(targets: Sequence[TargetResult]) -> list[str]:
    """Return a name for each target: its URL or its model if only these differ, with its number where a name is not unique."""
    models, urls = {target.model for target in targets}, {target.url for target in targets}
    names = [
        target.url if len(models) == 1 and len(urls) > 1 else target.model if len(urls) == 1 else f"{target.model} at {target.url}"
        for target in targets
    ]
    return [f"{name} ({index})" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]


class LoadTables:
    """Makes the tables of one target.

    Args:
        section: The id of its section.
        target: The target.
        settings: Settings of the test.

    Example:
        >>> [table.title for table in LoadTables("s1", target, result.settings).all()]
    """

    def __init__(self, section: str, target: TargetResult, settings: RunSettings) -> None:
        self.section = section
        self._target = target
        self._settings = settings

    @staticmethod
    def overview(names: Sequence[str], tables: Sequence[LoadTables]) -> Table:
        """Return the table of all steps of all targets.

        Args:
            names: The names of the targets.
            tables: Their tables.
        """
        rows = []
        slo = tables[0]._settings.slo
        for name, own in zip(names, tables, strict=True):
            for step in own._target.steps:
                latency = [_latency(step, key) for key in ("p50", "p99")]
                objective = [] if slo is None else [_optional(step.goodput_per_s, step)]
                throughput = (_cell(step.requests_per_s), _cell(step.images_per_s), *objective)
                rows.append(Row((Cell(name, key=name), _load_cell(step), *throughput, *latency, _share_cell(step.failed, step.sent))))
        note = "Calls and images that were answered per second, latency in ms, and failures in % of the calls that were sent."
        if slo is not None:
            note += f" Goodput: calls per second that were answered within {slo.latency_ms:g} ms."
        goodput = [] if slo is None else ["goodput/s"]
        columns = ("target", "load", "calls/s", "images/s", *goodput, "p50 ms", "p99 ms", "failed %")
        return Table("overview", "Overview", note, columns, tuple(rows), 2, len(rows) > _LONG_TABLE)

    def all(self) -> Iterator[Table]:
        """Yield the tables."""
        yield self._latency()
        yield self._throughput()
        if any(step.schedule is not None for step in self._target.steps):
            yield self._schedule()
        yield self._counters()
        if any(step.failures for step in self._target.steps):
            yield self._failures()
        if self._target.capacity is not None:
            yield self._capacity()
        yield self._timeline()

    def _table(self, key: str, title: str, note: str, columns: Sequence[str], rows: Sequence[Row], text_columns: int = 1) -> Table:
        return Table(f"{self.section}-{key}", title, note, tuple(columns), tuple(rows), text_columns, len(rows) > _LONG_TABLE)

    def _latency(self) -> Table:
        start = "sending" if self._settings.loop == "closed" else "the intended time of the call"
        note = f"Of the answered calls, from {start}. From a histogram with three significant digits; max and mean are exact."
        slo = self._settings.slo
        if slo is not None:
            note += f" Within: share of the calls, failed ones included, that were answered within {slo.latency_ms:g} ms."
        rows = []
        for step in self._target.steps:
            within = [] if slo is None else [_optional(None if step.attainment is None else 100 * step.attainment, step)]
            rows.append(Row((_load_cell(step), _cell(step.answered), *(_latency(step, key) for key in _LATENCIES), *within)))
        columns = ("load", "answered", *_LATENCIES.values(), *([] if slo is None else ["within %"]))
        return self._table("latency", "Latency, ms", note, columns, rows)

    def _throughput(self) -> Table:
        note = "Calls and images of the measured window; warm-up is left out. Unsent: calls that found no free slot."
        keys = ("seconds", "sent", "answered", "failed", "unsent", "images", "requests_per_s", "images_per_s")
        slo = self._settings.slo
        rows = [
            Row(
                (
                    _load_cell(step),
                    *(_cell(getattr(step, key)) for key in keys),
                    *([] if slo is None else [_optional(step.goodput_per_s, step)]),
                )
            )
            for step in self._target.steps
        ]
        columns = ("load", "seconds", *keys[1:6], "calls/s", "images/s", *([] if slo is None else ["goodput/s"]))
        return self._table("throughput", "Throughput", note, columns, rows)

    def _schedule(self) -> Table:
        rows = []
        for step in self._target.steps:
            late = (_NONE, _NONE) if step.schedule is None else (_cell(100 * step.schedule.late_share), _cell(step.schedule.max_late_ms))
            verdict = "kept" if step.valid else step.problem or "missed"
            rows.append(Row((_load_cell(step), Cell(verdict, key=verdict), *late)))
        note = (
            "How well the generator kept its own schedule. Where more than 1 % of the calls were sent more than 1 ms late, "
            "no latency is reported."
        )
        return self._table("schedule", "Accuracy of the schedule", note, ("load", "schedule", "late %", "latest ms"), rows, 2)

    def _counters(self) -> Table:
        rows = []
        for step in self._target.steps:
            client = step.client_counters
            numbers = (_cell(client.requests), _NONE, _cell(client.failures), _cell(client.images))
            mean = _NONE if step.latency_ms is None else _cell(step.latency_ms.mean)
            rows.append(Row((_load_cell(step), Cell("client", key=""), *numbers, _NONE, _NONE, _NONE, mean)))
            models = {} if step.server_counters is None else step.server_counters.models
            for model in sorted(models, key=lambda name: (name != self._target.model, name)):
                rows.append(Row((_load_cell(step), Cell(model, ("server",), model), *_counter_cells(models[model]))))
        note = (
            "What client and server counted in the same window. Batch: images per execution. Queue, compute and total: mean times of a "
            "request in the server; the total of the client is its mean latency."
        )
        columns = ("load", "counted by", "requests", "executions", "failures", "images", "batch", "queue ms", "compute ms", "total ms")
        return self._table("counters", "Client and server", note, columns, rows, 2)

    def _failures(self) -> Table:
        rows = [
            Row((_load_cell(step), Cell(kind, key=kind), _cell(count), _share_cell(count, step.sent)))
            for step in self._target.steps
            for kind, count in sorted(step.failures.items(), key=lambda item: -item[1])
        ]
        note = "Failed calls by the class of the error. They are no latencies."
        return self._table("failures", "Failures by kind", note, ("load", "error", "calls", "% of sent"), rows, 2)

    def _capacity(self) -> Table:
        capacity = self._target.capacity
        assert capacity is not None
        rows = []
        for trial in capacity.tried:
            verdict = "holds" if trial.holds else trial.problem or "does not hold"
            attainment = _missing_cell(None if trial.attainment is None else 100 * trial.attainment)
            quantile = _missing_cell(trial.quantile_ms)
            rate = Cell(f"{number(trial.rate_per_s)}/s", key=trial.rate_per_s)
            rows.append(Row((rate, Cell(verdict, key=verdict), attainment, quantile)))
        slo = self._settings.slo
        name = "quantile" if slo is None else f"p{100 * slo.quantile:.10g}"
        note = f"Rates in the order in which they were tried. Objective: {slo}; a failed call counts as infinitely slow."
        return self._table("capacity", "Search for the capacity", note, ("rate", "result", "within %", f"{name} ms"), rows, 2)

    def _timeline(self) -> Table:
        rows = []
        for step in self._target.steps:
            for second in step.timeline:
                counts = (_cell(second.sent), _cell(second.answered), _cell(second.failed))
                times = [_missing_cell(value) if step.valid else _NOT_REPORTED for value in (second.p50_ms, second.p99_ms, second.max_ms)]
                rows.append(Row((_load_cell(step), _cell(second.s), *counts, *times)))
        note = "Calls by the second of their intended time, answers and failures by the second in which they came."
        columns = ("load", "second", "sent", "answered", "failed", "p50 ms", "p99 ms", "max ms")
        return Table(f"{self.section}-timeline", "Timeline", note, columns, tuple(rows), is_long=True)


def _cell(value: float) -> Cell:
    return Cell(number(value), key=value)


def _missing_cell(value: float | None) -> Cell:
    return Cell(MISSING, is_missing=True) if value is None else _cell(value)


def _optional(value: float | None, step: Step) -> Cell:
    return _missing_cell(value) if step.valid else _NOT_REPORTED


def _load_cell(step: Step) -> Cell:
    return Cell(load_text(step), key=load_of(step))


def _latency(step: Step, key: str) -> Cell:
    latency: Latency | None = step.latency_ms
    return _optional(None if latency is None else getattr(latency, key), step)


def _share_cell(count: int, total: int) -> Cell:
    return Cell(f"{100 * count / total:.2f}", key=count / total) if total else _NONE


def _counter_cells(counters: ModelCounters) -> list[Cell]:
    return [_NONE if (value := getattr(counters, key)) is None else _cell(value) for key in _COUNTERS]
