"""Results of load tests that look like measured ones, for the tests of reports and for pages to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram

from defensemble.load.result import (
    Capacity,
    ClientCounters,
    Latency,
    LoadResult,
    ModelCounters,
    RunSettings,
    Schedule,
    ServerCounters,
    ServerInfo,
    Slo,
    Step,
    TargetResult,
    TimelineSecond,
    Trial,
)

SLO = Slo(0.99, 50.0)
SECONDS = 5
HOSTILE = "<script>alert(1)</script>|*x*"
_MEMBERS = ("ensemble", "keep0.5-a", "keep0.5-b")


def step(rate: float, capacity: float, *, is_open: bool = True, failures: dict[str, int] | None = None, late: float = 0.0) -> Step:
    """One step at a rate (open loop) or with as many callers (closed loop), on a server with this capacity.

    Args:
        rate: Calls per second, or callers.
        capacity: Calls per second that the server can answer.
        is_open: Whether the loop is open.
        failures: Failed calls by kind.
        late: Share of the calls that the generator sent late; the step is invalid above 0.01.
    """
    rng = np.random.default_rng(int(rate))
    failed = sum((failures or {}).values())
    per_s = rate if is_open else min(20 * rate, capacity)
    sent = round(per_s * SECONDS)
    answered = sent - failed
    load = min(per_s / capacity, 0.97)
    latencies = rng.lognormal(np.log(4 / (1 - load)), 0.3 + 0.5 * load, answered)
    valid = late <= 0.01
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    for value in latencies:
        histogram.record_value(int(value * 1000))
    p50, p90, p99, p99_9 = (histogram.get_value_at_percentile(p) / 1000 for p in (50, 90, 99, 99.9))
    within = int((latencies <= SLO.latency_ms).sum())
    parts = np.array_split(latencies, SECONDS)
    return Step(
        callers=None if is_open else round(rate),
        rate_per_s=rate if is_open else None,
        began_at="2026-12-01T12:00:00+00:00",
        seconds=float(SECONDS),
        sent=sent,
        answered=answered,
        failed=failed,
        failures=failures or {},
        unsent=0,
        images=16 * answered,
        requests_per_s=answered / SECONDS,
        images_per_s=16 * answered / SECONDS,
        goodput_per_s=within / SECONDS if valid else None,
        attainment=within / sent if valid else None,
        latency_ms=Latency(p50, p90, p99, p99_9, float(latencies.max()), float(latencies.mean())) if valid else None,
        histogram=histogram.encode().decode() if valid else None,
        schedule=Schedule(late, 0.4 + 100 * late) if is_open else None,
        valid=valid,
        problem=None if valid else f"{100 * late:.1f} % of the calls were sent more than 1 ms late; at most 1 % may be",
        server_counters=ServerCounters(
            SECONDS + 0.1,
            {
                name: ModelCounters(answered, answered // 2, 16 * answered, 0, 32.0 if answered else None, 1.25, 6.5, 8.75)
                for name in _MEMBERS
            },
        ),
        client_counters=ClientCounters(sent, failed, 16 * answered),
        timeline=tuple(
            TimelineSecond(
                second,
                sent // SECONDS,
                len(part),
                failed if second == SECONDS - 1 else 0,
                float(np.median(part)),
                float(np.quantile(part, 0.99)),
                float(part.max()),
            )
            for second, part in enumerate(parts)
        ),
    )


def target(url: str, steps: Sequence[Step], capacity: Capacity | None = None, model: str = "ensemble") -> TargetResult:
    return TargetResult(url, model, ServerInfo("triton", "2.51.0"), (3, 32, 32), tuple(steps), capacity)


def result(*targets: TargetResult, **changes: Any) -> LoadResult:
    """A result with these targets; `changes` are those of the settings."""
    is_open = targets[0].steps[0].rate_per_s is not None
    settings = RunSettings(
        loop="open" if is_open else "closed",
        arrivals="poisson" if is_open else None,
        batch_sizes=((16, 1.0),),
        images="random",
        image_count=64,
        warm_up_s=2.0,
        ramp_s=0.0,
        step_s=float(SECONDS),
        outputs=("probabilities",),
        timeout_s=5.0,
        max_in_flight=512,
        slo=SLO,
        seed=0,
        processes=1,
        realtime=False,
    )
    return LoadResult(
        measured_at="2026-12-01T12:05:00+00:00",
        hardware={"cpu": "a processor", "cores": 2, "memory_bytes": 8 << 30},
        versions={"defensemble": "0.1.0", "python": "3.11.9"},
        git_commit="810e312c",
        settings=msgspec.structs.replace(settings, **changes),
        targets=targets,
    )


def open_loop() -> LoadResult:
    """One target with steps of an open loop, of which one has failures and one is invalid, and its capacity."""
    rates = (20.0, 50.0, 100.0, 150.0, 200.0, 400.0)
    steps = [step(rate, 220) for rate in rates[:4]]
    steps.append(step(200, 220, failures={"DeadlineExceededError": 7, "ServerUnavailableError": 2}))
    steps.append(step(400, 500, late=0.123))
    tried = tuple(
        Trial(
            rate, one.attainment, None if one.latency_ms is None else one.latency_ms.p99, rate <= 100, None if rate <= 100 else "too slow"
        )
        for rate, one in zip(rates, steps, strict=True)
    )
    return result(target("http://127.0.0.1:8000", steps, Capacity(100.0, tried, (100.0, 150.0), None)))


def two_targets() -> LoadResult:
    """Two targets side by side in a closed loop."""
    callers = (1, 2, 4, 8, 16)
    return result(
        target("http://127.0.0.1:8000", [step(count, 220, is_open=False) for count in callers]),
        target("grpc://127.0.0.1:8001", [step(count, 300, is_open=False) for count in callers]),
        slo=None,
    )


def hostile() -> LoadResult:
    """Names from a user's file that would run, or break a table, if they were not escaped."""
    one = msgspec.structs.replace(step(20, 220, failures={HOSTILE: 1}), valid=False, problem=HOSTILE, latency_ms=None, histogram=None)
    return result(target(f"http://{HOSTILE}", [one, step(50, 220)], model=HOSTILE), images=HOSTILE)
