"""What the supervisor knows of each model and of itself, and its answers on `/status`, `/readyz` and `/metrics`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..process.events import FAULTS
from .targets import Problem, Target

SCHEMA = "defensemble.supervisor/1"


@dataclass
class Failure:
    """A confirmed failure, until the model answers correctly again.

    Args:
        problem: What was wrong.
        detected_at: Time of the first wrong answer, in seconds since the epoch.
        is_handled: Whether a repair or a restart was tried.
    """

    problem: Problem
    detected_at: float
    is_handled: bool = False


@dataclass
class TargetRecord:
    """The checks of one model.

    Args:
        target: The model.
        results: Number of checks by result: `correct`, `refused`, `nan`, `wrong` or `error`.
        failure: The present failure.
        last_failure: The latest failure, also after it has ended.
        latency_s: Time of the latest answer.
        checked_at: Time of the latest answer, in seconds since the epoch.
        correct_at: Time of the latest correct answer, in seconds since the epoch; None before it.
        correct_since: Time of the first correct answer after the latest other one, in seconds since the epoch.
    """

    target: Target
    results: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None
    last_failure: Failure | None = None
    latency_s: float | None = None
    checked_at: float | None = None
    correct_at: float | None = None
    correct_since: float | None = None

    def note(self, result: str, latency_s: float) -> None:
        """Note an answer."""
        self.results[result] += 1
        self.checked_at, self.latency_s = time.time(), latency_s
        if result == "correct":
            self.correct_at, self.failure = self.checked_at, None
            self.correct_since = self.correct_since or self.checked_at
        elif result != "refused":
            self.correct_since = None

    def fail(self, problem: Problem, detected_at: float) -> None:
        """Note a confirmed failure."""
        self.failure = self.last_failure = Failure(problem, detected_at)

    def values(self) -> dict[str, Any]:
        """Return the record for JSON."""
        last = self.last_failure
        return {
            "name": self.target.name,
            "version": self.target.version,
            "state": self.failure.problem.fault
            if self.failure is not None
            else "correct"
            if self.correct_at is not None
            else "not answered",
            "checked_at": self.checked_at,
            "correct_at": self.correct_at,
            "latency_ms": None if self.latency_s is None else round(1000 * self.latency_s, 3),
            "checks": dict(self.results),
            "last_failure": None
            if last is None
            else {"detected_at": last.detected_at, "fault": last.problem.fault, "text": last.problem.text},
        }


@dataclass
class Outages:
    """When the server was down.

    Args:
        counts: Number of outages by kind, such as `died`.
        kind: The kind of the present outage; None while the server runs.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kind: str | None = "starting"
    _seconds: float = 0.0
    _since: float = field(default_factory=time.monotonic)

    def begin(self, kind: str) -> None:
        """Note the begin of an outage; a failed restart continues it."""
        if self.kind is None:
            self._since = time.monotonic()
        self.kind = kind
        self.counts[kind] += 1

    def end(self) -> None:
        """Note that the server runs."""
        if self.kind not in (None, "starting"):
            self._seconds += time.monotonic() - self._since
        self.kind = None

    @property
    def seconds(self) -> float:
        """Seconds of all outages."""
        return self._seconds + (time.monotonic() - self._since if self.kind not in (None, "starting") else 0.0)


def readiness_problems(
    records: Mapping[str, TargetRecord], ensembles: Sequence[str], problems: Mapping[str, str], outage: str | None, within_s: float
) -> list[str]:
    """Return why the server is not ready: empty if every ensemble has answered correctly in the last `within_s` seconds.

    Args:
        records: The checks, by label.
        ensembles: The ensembles of the repository; without any, every model must have answered correctly.
        problems: The models that cannot be served, or that the server has not loaded at its start, and why.
        outage: Why the server does not run, or None.
        within_s: The longest time since the last correct answer.
    """
    if outage is not None:
        return [f"the server is not running: {outage}"]
    now = time.time()
    reasons = [f"{name} is not served: {problems[name]}" for name in ensembles if name in problems and name not in records]
    for label, record in records.items():
        if ensembles and not record.target.is_ensemble:
            continue
        if record.failure is not None:
            reasons.append(f"{label}: {record.failure.problem.text}")
        elif record.correct_at is None:
            reasons.append(f"{label} has not answered yet")
        elif now - record.correct_at > within_s:
            reasons.append(f"{label} has not answered for {now - record.correct_at:.1f} s")
    if not records:
        reasons.append("no model was checked yet")
    return reasons


def metrics_text(
    records: Mapping[str, TargetRecord], outages: Outages, repairs: Counter[str], is_ready: bool, interval_s: float, looped_at: float
) -> str:
    """Return the metrics in Prometheus' text format."""
    families: list[tuple[str, str, str, list[tuple[dict[str, str], float]]]] = [
        ("ready", "gauge", "1 if /readyz answers 200.", [({}, float(is_ready))]),
        ("server_up", "gauge", "1 while the server runs.", [({}, float(outages.kind is None))]),
        ("interval_seconds", "gauge", "Seconds between two checks of a model.", [({}, interval_s)]),
        ("loop_timestamp_seconds", "gauge", "When the supervisor was last at work.", [({}, looped_at)]),
        ("downtime_seconds_total", "counter", "Seconds without a running server.", [({}, outages.seconds)]),
        ("outages_total", "counter", "Outages by kind.", [({"kind": kind}, outages.counts[kind]) for kind in (*FAULTS, "stopping")]),
        (
            "repairs_total",
            "counter",
            "Repairs of a model by result.",
            [({"result": result}, repairs[result]) for result in ("done", "failed")],
        ),
    ]
    checks, latencies, correct, failing = [], [], [], []
    for record in records.values():
        labels = {"model": record.target.name, "version": "" if record.target.version is None else str(record.target.version)}
        checks += [({**labels, "result": result}, float(count)) for result, count in sorted(record.results.items())]
        failing.append((labels, float(record.failure is not None)))
        latencies += [(labels, record.latency_s)] if record.latency_s is not None else []
        correct += [(labels, record.correct_at)] if record.correct_at is not None else []
    families += [
        ("checks_total", "counter", "Checks by result.", checks),
        ("check_failing", "gauge", "1 while a model answers wrongly.", failing),
        ("check_latency_seconds", "gauge", "Seconds until the latest answer.", latencies),
        ("check_correct_timestamp_seconds", "gauge", "When a model last answered correctly.", correct),
    ]
    lines = []
    for name, kind, text, samples in families:
        full = f"defensemble_supervisor_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} {kind}"]
        for labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
            lines.append(f"{full}{{{pairs}}} {value!r}" if pairs else f"{full} {value!r}")
    return "\n".join(lines) + "\n"


def _escaped(label: str) -> str:
    """Escape the characters that the text format escapes."""
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
