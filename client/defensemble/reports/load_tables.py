"""The tables of a report on a load test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..load.display import load_of, load_text, number
from ..load.result import ModelCounters, RunSettings, Slo, Step, TargetResult
from .cells import MISSING
from .model import Cell, Row, Table

QUANTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9"}
"""The names of the quantiles by their fields."""
_LEAST_CALLS = {"p99": 100, "p99_9": 1000}  # of fewer calls, the quantile is the maximum
_LATENCIES = {**QUANTILES, "max": "max", "mean": "mean"}
_LONG_TABLE = 30  # rows, above which the page folds a table
_COUNTERS = ("requests", "executions", "failures", "images", "mean_batch", "queue_ms", "compute_ms", "success_ms")
_NOT_REPORTED = Cell("not reported", is_missing=True)
_NONE = Cell("-")


def percent(share: float) -> str:
    """Return a share in percent with one decimal place; only a share of 0 is `0.0`, and only one of 1 is `100.0`."""
    text = f"{100 * share:.1f}"
    return "< 0.1" if share > 0 and text == "0.0" else "> 99.9" if share < 1 and text == "100.0" else text


def has_enough_calls(quantile: str, answered: int) -> bool:
    """Return whether a quantile of so many calls is more than their maximum.

    Args:
        quantile: Its field, such as `p99_9`.
        answered: Number of calls.
    """
    return answered >= _LEAST_CALLS.get(quantile, 0)


def target_names(targets: Sequence[TargetResult]) -> list[str]:
    """Return a name for each target: its URL and its model, with its number where that is not unique."""
    names = [f"{target.url}, {target.model}" for target in targets]
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
        is_search = any(own._target.capacity is not None for own in tables)  # which judges each step by more than the objective
        for name, own in zip(names, tables, strict=True):
            for step in own._target.steps:
                latency = [_latency(step, key) for key in ("p50", "p99")]
                objective = [] if slo is None else [_optional(step.goodput_per_s, step)]
                throughput = (_cell(step.requests_per_s), _cell(step.images_per_s), *objective)
                verdict = [] if slo is None or is_search else [_holds_cell(step, slo)]
                rows.append(
                    Row((Cell(name, key=name), _load_cell(step), *throughput, *latency, _share_cell(step.failed, step.sent), *verdict))
                )
        note = "Calls and images that were answered per second, latency in ms, and failures in % of the calls that were sent."
        if slo is not None:
            note += f" Goodput: calls per second that were answered within {slo.latency_ms:g} ms."
            note += "" if is_search else f" Holds: whether the step holds {slo}."
        goodput = [] if slo is None else ["goodput/s"]
        judged = [] if slo is None or is_search else ["holds"]
        columns = ("target", "load", "calls/s", "images/s", *goodput, "p50 ms", "p99 ms", "failed %", *judged)
        note += ' A p99 of fewer than 100 calls is their maximum: it is shown as "-".'
        return Table("overview", "Overview", note, columns, tuple(rows), 1, len(rows) > _LONG_TABLE)

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
        note += ' A p99 of fewer than 100 calls, or a p99.9 of fewer than 1,000, is their maximum: it is shown as "-".'
        slo = self._settings.slo
        if slo is not None:
            note += f" Within: share of the calls, failed ones included, that were answered within {slo.latency_ms:g} ms."
        rows = []
        for step in self._target.steps:
            within = [] if slo is None else [_percent_cell(step.attainment) if step.valid else _NOT_REPORTED]
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
            late = (_NONE, _NONE) if step.schedule is None else (_percent_cell(step.schedule.late_share), _cell(step.schedule.max_late_ms))
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
        note = "Failed calls by the class of the error. They have no latency and are not in the percentiles."
        return self._table("failures", "Failures by kind", note, ("load", "error", "calls", "% of sent"), rows, 2)

    def _capacity(self) -> Table:
        capacity = self._target.capacity
        assert capacity is not None
        rows = []
        for trial in capacity.tried:
            verdict = "holds" if trial.holds else trial.problem or "does not hold"
            attainment = _percent_cell(trial.attainment)
            quantile = _missing_cell(trial.quantile_ms)
            rate = Cell(f"{number(trial.rate_per_s)}/s", key=trial.rate_per_s)
            rows.append(Row((rate, Cell(verdict, key=verdict), attainment, quantile)))
        slo = self._settings.slo
        name = "quantile" if slo is None else slo.name
        note = f"Rates in the order in which they were tried. Objective: {slo}; a failed call counts as infinitely slow."
        return self._table("capacity", "Search for the capacity", note, ("rate", "result", "within %", f"{name} ms"), rows, 2)

    def _timeline(self) -> Table:
        rows = []
        for step in self._target.steps:
            for second in step.timeline:
                counts = (_cell(second.sent), _cell(second.answered), _cell(second.failed))
                p99 = _optional(second.p99_ms, step) if has_enough_calls("p99", second.answered) or not step.valid else _NONE
                times = (_optional(second.p50_ms, step), p99, _optional(second.max_ms, step))
                rows.append(Row((_load_cell(step), _cell(second.s), *counts, *times)))
        note = (
            "Calls by the second of their intended time, answers and failures by the second in which they came. A p99 of fewer than "
            '100 calls is their maximum: it is shown as "-".'
        )
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
    if step.latency_ms is None or has_enough_calls(key, step.answered):
        return _optional(None if step.latency_ms is None else getattr(step.latency_ms, key), step)
    return _NONE


def _percent_cell(share: float | None) -> Cell:
    return _missing_cell(None) if share is None else Cell(percent(share), key=share)


def _share_cell(count: int, total: int) -> Cell:
    return _percent_cell(count / total) if total else _NONE


def _holds_cell(step: Step, slo: Slo) -> Cell:
    if step.attainment is None:
        return _optional(None, step)
    return Cell("yes" if step.holds(slo) else "no", key=step.attainment)


def _counter_cells(counters: ModelCounters) -> list[Cell]:
    return [_NONE if (value := getattr(counters, key)) is None else _cell(value) for key in _COUNTERS]
