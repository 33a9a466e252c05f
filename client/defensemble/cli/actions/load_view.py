"""The terminal view of `defensemble load`: progress while it runs, and the tables of its result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...load import LoadResult, LoadSettings, Progress, Slo, Step, TargetResult, TimelineSecond
from ...load.display import load_text, number
from ..cells import cell
from ..notes import print_note, print_progress, shows_progress

_BARS = "▁▂▃▄▅▆▇█"
_SPARKLINE_SECONDS = 60
TABLE_WIDTH = 96


class LoadView:
    """Shows a running test: a table that is updated once a second on a terminal, a line per step elsewhere.

    Args:
        console: Where to draw: standard error.
        settings: The settings of the test.
        targets: Number of targets.
        searches_capacity: Whether the number of steps is unknown.
    """

    def __init__(self, console: Console, settings: LoadSettings, targets: int, *, searches_capacity: bool) -> None:
        self._console = console
        self._slo = settings.slo
        self._step_s = settings.step_s + settings.warm_up_s + settings.ramp_s
        self._before_step_s = settings.warm_up_s + settings.ramp_s
        self._total = None if searches_capacity else targets * len(settings.rates or settings.callers)
        self._has_several = targets > 1
        self._done: list[tuple[str, Step]] = []
        self._seconds: list[TimelineSecond] = []
        is_live = console.is_terminal and shows_progress()
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_live else None

    def __enter__(self) -> LoadView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show what the test does."""
        if progress.note is not None:
            print_note(progress.note)
        elif progress.step is not None:
            self._done.append((progress.url, progress.step))
            if self._live is None:
                print_progress(f"{progress.url if self._has_several else ''} {_line(progress)}".strip())
        elif progress.second is None:
            self._seconds = []
        elif not self._seconds or progress.second.s > self._seconds[-1].s:
            self._seconds.append(progress.second)
        if self._live is not None:
            self._live.update(self._view(progress), refresh=True)

    def _view(self, progress: Progress) -> Group:
        tables = [
            step_table(url if self._has_several else None, [step for own, step in self._done if own == url], self._slo)
            for url in dict.fromkeys(url for url, _ in self._done)
        ]
        where = f" on {progress.url}" if self._has_several else ""
        now = Text(f"{progress.load}{where}, {progress.phase}, {progress.elapsed_s:.0f} of {progress.phase_s:.0f} s")
        lines: list[Text | ProgressBar] = [now]
        if self._seconds:
            last = self._seconds[-1]
            latency = "" if last.p99_ms is None else f", p50 {_milliseconds(last.p50_ms)} ms, p99 {_milliseconds(last.p99_ms)} ms"
            lines.append(Text(f"{last.answered}/s answered, {last.failed}/s failed{latency}"))
            lines.append(Text(f"p99 {sparkline([second.p99_ms for second in self._seconds[-_SPARKLINE_SECONDS:]])}"))
        if self._total is not None:
            before_s = 0.0 if progress.phase == "warm-up" else self._before_step_s
            in_step_s = 0.0 if progress.step is not None else min(before_s + progress.elapsed_s, self._step_s)
            lines.append(ProgressBar(self._total * self._step_s, len(self._done) * self._step_s + in_step_s, width=60))
        return Group(*tables, *lines)


def sparkline(values: Sequence[float | None]) -> str:
    """Return a bar for each value, relative to the largest; a space for None."""
    largest = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else _BARS[min(int(value / largest * len(_BARS)), len(_BARS) - 1)] for value in values)


def tables_from_result(result: LoadResult) -> Iterator[Table | Text]:
    """Yield what is printed of a result: a table for each target, what is wrong with its steps, and its capacity."""
    for target in result.targets:
        if target.steps:
            yield step_table(f"{target.url}, model {target.model}", target.steps, result.settings.slo)
        for step in target.steps:
            name = load_text(step)
            if step.problem is not None and target.capacity is None:
                yield Text(f"{name}: {step.problem}")
            slo = result.settings.slo
            if slo is not None and target.capacity is None and step.attainment is not None and not step.holds(slo):
                within = f"{100 * step.attainment:.4g} % within {slo.latency_ms:g} ms, {100 * slo.quantile:.10g} % needed"
                yield Text(f"{name} does not hold {slo}: {within}")
            if step.failed or step.unsent:
                kinds = [f"{count} {kind}" for kind, count in step.failures.items()] + ([f"{step.unsent} unsent"] if step.unsent else [])
                yield Text(f"{name}: {', '.join(kinds)} of {step.sent + step.unsent:,} calls")
        if target.capacity is not None:
            yield Text(_capacity_line(target, result.settings.slo))


def step_table(title: str | None, steps: Sequence[Step], slo: Slo | None) -> Table:
    """Return a table of steps.

    Args:
        title: What they ran on; None for no title.
        steps: The steps.
        slo: The objective, which has a column; None for none.
    """
    table = Table(
        title=None if title is None else cell(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("load", no_wrap=True)
    headings = ["calls\nper s", "images\nper s", "p50\nms", "p90\nms", "p99\nms", "p99.9\nms", "max\nms", "failed"]
    if slo is not None:
        headings.append(f"within\n{slo.latency_ms:g}ms")
    for heading in (*headings, "queue\nms", "batch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in steps:
        table.add_row(*_row(step, slo))
    return table


def _row(step: Step, slo: Slo | None) -> list[str]:
    latency = step.latency_ms
    values = [None] * 5 if latency is None else [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max]
    row = [load_text(step)]
    row += [f"{step.requests_per_s:,.1f}", f"{step.images_per_s:,.1f}", *map(_milliseconds, values), f"{step.failed + step.unsent:,}"]
    if slo is not None:
        row.append("-" if step.attainment is None else f"{100 * step.attainment:.1f}%")
    models = list(step.server_counters.models.values()) if step.server_counters is not None else []
    # Of an ensemble, the members queue and batch.
    row.append(_milliseconds(max((model.queue_ms for model in models if model.queue_ms is not None), default=None)))
    batch = max((model.mean_batch for model in models if model.mean_batch is not None), default=None)
    return [*row, "-" if batch is None else f"{batch:.1f}"]


def _line(progress: Progress) -> str:
    step = progress.step
    assert step is not None
    text = f"{progress.load}: {step.requests_per_s:.1f} calls/s"
    if step.latency_ms is not None:
        text += f", p50 {_milliseconds(step.latency_ms.p50)} ms, p99 {_milliseconds(step.latency_ms.p99)} ms"
    if step.failed + step.unsent:
        text += f", {step.failed + step.unsent} failed"
    return text if step.valid else f"{text}, invalid"


def _capacity_line(target: TargetResult, slo: Slo | None) -> str:
    capacity = target.capacity
    assert capacity is not None
    found = "no capacity was found" if capacity.rate_per_s is None else f"capacity {number(capacity.rate_per_s)} calls/s"
    above = "" if capacity.bracket[1] is None else f"; {number(capacity.bracket[1])}/s does not hold"
    problem = "" if capacity.problem is None else f" ({capacity.problem})"
    return f"{target.url}: {found} at {slo}{above}; {len(capacity.tried)} trial{'s' * (len(capacity.tried) != 1)}{problem}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"
