"""The report on a load test, as one page of HTML, as Markdown or as CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from ..load.display import load_of, load_text, number
from ..load.result import LoadResult, Step, TargetResult
from ..probes.outcome import STATUSES, Check
from .cells import counted
from .load_charts import charts_by_part
from .load_tables import LoadTables, has_enough_calls, percent, target_names
from .model import CheckOfResult, Figure, Report, Section, Statement
from .write import write_report

TITLE = "Load test"
_LEADS = {
    "closed": "Closed loop: each caller sends its next call when the last one has ended, so a slow server gets fewer calls. The load is "
    "the number of callers, and latency is counted from sending.",
    "open": "Open loop: calls are scheduled beforehand, whether or not the server has answered. The load is the rate, and latency is "
    "counted from the intended time of a call, so that the time for which a call waits behind a slow server counts.",
}


def write_load_report(
    path: Path, result: LoadResult, form: str | None = None, charts_folder: Path | None = None, title: str = TITLE
) -> list[Path]:
    """Write the report on a load test, atomically; an earlier file is replaced. Returns the paths of all files that were written.

    Args:
        path: The file.
        result: The result.
        form: `html`, `md` or `csv`; None: by the file's suffix.
        charts_folder: Folder for the charts as SVG files, to which Markdown links; None: none are written.
        title: Title of the report.

    Raises:
        InputError: The format is unknown, or a chart would replace the report.
        MissingExtraError: HTML or charts are asked for, and the extra `load` is not installed.
        OSError: A file cannot be written. The error names it.
    """
    return write_report(load_report(result, title), path, form, charts_folder)


def load_report(result: LoadResult, title: str = TITLE) -> Report:
    """Return the report on a load test.

    Args:
        result: The result.
        title: Title of the report.
    """
    names = target_names(result.targets)
    tables = [LoadTables(f"s{index}", target, result.settings) for index, target in enumerate(result.targets, 1)]
    sections = tuple(_section(result, target, name, own) for target, name, own in zip(result.targets, names, tables, strict=True))
    checks = [CheckOfResult(name, check) for target, name in zip(result.targets, names, strict=True) for check in _checks(target)]
    return Report(
        title,
        f"{counted(len(names), 'target')}, {counted(sum(len(target.steps) for target in result.targets), 'step')}",
        tuple(_statements(result, names)),
        tuple(sorted(checks, key=lambda item: -STATUSES.index(item.status))),
        LoadTables.overview(names, tables),
        sections,
        tuple(_figures(result, names)),
        partial(charts_by_part, result, names),
    )


def _statements(result: LoadResult, names: Sequence[str]) -> Iterator[Statement]:
    """Yield what a reader must know first: the capacity or the highest throughput, failures, and what is not reported."""
    if result.interrupted:
        yield Statement("The test was interrupted: the last step may be shorter, and steps may be missing.", is_alarm=True)
    for name, target in zip(names, result.targets, strict=True):
        yield _main_statement(name, target, result)
        yield from _missed_objective(name, target, result)
        if target.capacity is not None and target.capacity.problem is not None:
            yield Statement(f"{name}: the search for the capacity is incomplete: {target.capacity.problem}", is_alarm=True)
        for valid, text in ((False, "no latencies of"), (True, "a problem in")):
            items = tuple(
                f"{load_text(step)}: {step.problem}"
                for step in target.steps
                if step.valid is valid and (step.problem is not None or not valid)
            )
            if items:
                text = f"{name}: {text} {len(items)} of {counted(len(target.steps), 'step')}."
                yield Statement(text, is_alarm=True, note="Problems:", items=items)
        unsent = tuple(f"{load_text(step)}: {step.unsent:,}" for step in target.steps if step.unsent)
        if unsent:
            under_way = f"{result.settings.max_in_flight:,} were under way"
            text = f"{name}: calls were not sent, as {under_way}. They count as answered after the objective."
            yield Statement(text, is_alarm=True, note="Calls that were not sent:", items=unsent)
        failing = [step for step in target.steps if step.failed]
        if failing:
            failed, sent = (sum(getattr(step, key) for step in failing) for key in ("failed", "sent"))
            items = tuple(
                f"{load_text(step)}: {', '.join(f'{count:,} {kind}' for kind, count in sorted(step.failures.items()))}" for step in failing
            )
            text = f"{name}: {failed:,} of {sent:,} calls failed in {counted(len(failing), 'step')}. "
            text += "Failed calls have no latency and are not in the percentiles."
            yield Statement(text, is_alarm=True, note="Failures by kind:", items=items)


def _main_statement(name: str, target: TargetResult, result: LoadResult) -> Statement:
    slo, capacity = result.settings.slo, target.capacity
    if capacity is not None:
        high = capacity.bracket[1]
        if capacity.rate_per_s is None:
            lowest = "" if high is None else f"; the lowest rate that was tried is {number(high)}/s"
            return Statement(f"{name}: no rate holds {slo}{lowest}.", is_alarm=True)
        above = "no higher rate was tried" if high is None else f"{number(high)}/s does not"
        return Statement(f"{name}: {number(capacity.rate_per_s)} calls/s hold {slo}; {above}.", is_alarm=False)
    if not target.steps:
        return Statement(f"{name}: no step was measured.", is_alarm=True)
    is_closed = result.settings.loop == "closed"
    steps = [step for step in target.steps if step.valid and not step.failed and not step.unsent]
    if slo is not None and not is_closed:
        steps = [step for step in steps if step.holds(slo)]
    best = max(steps, key=lambda step: step.images_per_s if is_closed else load_of(step), default=None)
    if best is None:
        if slo is not None and not is_closed and not any(step.holds(slo) for step in target.steps):
            return Statement(f"{name}: no step holds {slo}.", is_alarm=True)
        kind = "valid step is" if slo is None or is_closed else f"step holds {slo}"
        return Statement(f"{name}: no {kind} without failures.", is_alarm=True)
    throughput = f"{number(best.requests_per_s)} calls/s ({number(best.images_per_s)} images/s)"
    if is_closed:
        text = f"{name}: the highest throughput is {throughput} at {load_text(best)}"
    else:
        kind = "was answered" if slo is None else f"holds {slo}"
        text = f"{name}: the highest rate that {kind} without failures is {load_text(best)}: {throughput}"
    if best.latency_ms is not None:
        text += f", with a p50 of {number(best.latency_ms.p50)} ms"
        text += f" and a p99 of {number(best.latency_ms.p99)} ms" if has_enough_calls("p99", best.answered) else ""
    return Statement(f"{text}.", is_alarm=False)


def _missed_objective(name: str, target: TargetResult, result: LoadResult) -> Iterator[Statement]:
    """Yield which steps miss the objective. Those of a search for the capacity are meant to."""
    slo = result.settings.slo
    if slo is None or target.capacity is not None:
        return
    missed = [
        f"{load_text(step)} ({_distinct_percent(step.attainment, slo.quantile)})"
        for step in target.steps
        if step.attainment is not None and not step.holds(slo)
    ]
    if missed:
        verb = "does" if len(missed) == 1 else "do"
        needed = f"{100 * slo.quantile:.10g} % within {slo.latency_ms:g} ms needed"
        yield Statement(f"{name}: {', '.join(missed)} {verb} not hold {slo}: {needed}.", is_alarm=True)


def _distinct_percent(share: float, limit: float) -> str:
    """Return a share below a limit, with more digits if rounding would hide the difference."""
    return f"{percent(share)} %" if limit - share >= 0.001 else f"{100 * share:.6g} %"


def _checks(target: TargetResult) -> Iterator[Check]:
    """Yield whether the measurement can be trusted."""
    schedules = [(step.schedule.late_share, step) for step in target.steps if step.schedule is not None]
    if schedules:
        share, worst = max(schedules, key=lambda one: one[0])
        text = f"at most {percent(share)} % of the calls of a step were sent more than 1 ms late, at {load_text(worst)}; the limit is 1 %"
        yield Check("schedule of the generator", "PASS" if all(step.valid for step in target.steps) else "FAIL", text)
    counts: list[tuple[int, int]] = []
    differing = []
    for step in target.steps:
        by_client, by_server = step.client_counters.requests, _counted_by_server(target, step)
        if by_server is None:
            continue
        more = by_server.requests - by_client
        counts.append((by_client, more))
        # The supervisor of `defensemble serve` checks each model once per second.
        if by_client != step.sent or not 0 <= more <= math.ceil(step.seconds) + 1:
            differing.append(f"{load_text(step)}: {by_client:,} and {by_server.requests:,}, {step.sent:,} in the result")
    if differing:
        text = (
            "client and server counted different numbers of calls. Possible reasons: other callers, the checks of a supervisor, "
            f"calls that did not reach the server. Client and server: {'; '.join(differing)}"
        )
        yield Check("calls counted", "WARN", text)
    elif counts:
        total, more = (sum(column) for column in zip(*counts, strict=True))
        text = f"client and server counted the same {total:,} calls"
        if more:
            text = f"the client counted {total:,} calls and the server {more:,} more, at most one per second: "
            text += "the checks of a supervisor may be included"
        yield Check("calls counted", "PASS", text)
    else:
        yield Check("calls counted", "WARN", "the server reported no counters")


def _counted_by_server(target: TargetResult, step: Step) -> Any:
    return None if step.server_counters is None else step.server_counters.models.get(target.model)


def _section(result: LoadResult, target: TargetResult, name: str, tables: LoadTables) -> Section:
    settings = result.settings
    batches = ", ".join(f"{size}" if share == 1 else f"{size} ({100 * share:.3g} %)" for size, share in settings.batch_sizes)
    facts = {
        "server": None if target.server is None else f"{target.server.name} {target.server.version}",
        "images": f"{settings.images}, {settings.image_count:,} of {'x'.join(map(str, target.images_shape))}",
        "batch size": batches,
        "arrivals": settings.arrivals,
        "ramp": f"{settings.ramp_s:g} s" if settings.ramp_s else None,
        "warm-up": f"{settings.warm_up_s:g} s",
        "step": f"{settings.step_s:g} s",
        "priority": "real-time, which takes the processor from other processes" if settings.realtime else None,
        "objective": None if settings.slo is None else str(settings.slo),
        "measured": result.measured_at,
    }
    values = msgspec.to_builtins(result)
    shown = {key: values[key] for key in ("settings", "hardware", "versions", "git_commit", "measured_at") if values[key] is not None}
    return Section(
        tables.section,
        name,
        ("Load", _LEADS[settings.loop]),
        tuple((key, value) for key, value in facts.items() if value is not None),
        tuple(tables.all()),
        (),
        tuple((key, value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)) for key, value in shown.items()),
    )


def _figures(result: LoadResult, names: Sequence[str]) -> Iterator[Figure]:
    """Yield every number of the steps, with their load as the condition."""
    for name, target in zip(names, result.targets, strict=True):
        for step in target.steps:

            def figure(quantity: str, value: float | None, name: str = name, load: str = load_text(step)) -> Figure:
                return Figure("", f"load-{result.settings.loop}", name, "", load, quantity, value)

            counts = ("seconds", "sent", "answered", "failed", "unsent", "images")
            for quantity in (*counts, "requests_per_s", "images_per_s", "goodput_per_s", "attainment"):
                yield figure(quantity, getattr(step, quantity))
            for quantity, value in ({} if step.latency_ms is None else msgspec.to_builtins(step.latency_ms)).items():
                yield figure(f"{quantity}_ms", value)
            if step.schedule is not None:
                yield figure("late_share", step.schedule.late_share)
                yield figure("max_late_ms", step.schedule.max_late_ms)
            for kind, count in step.failures.items():
                yield figure(f"failed_{kind}", count)
            for model, counters in ({} if step.server_counters is None else step.server_counters.models).items():
                for quantity, value in msgspec.to_builtins(counters).items():
                    yield figure(f"server_{model}_{quantity}", value)
        if target.capacity is not None:
            yield Figure("", f"load-{result.settings.loop}", name, "", "", "capacity_per_s", target.capacity.rate_per_s)
