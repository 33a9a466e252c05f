"""Steps of load tests, from what was recorded."""

from __future__ import annotations

from defensemble.load import ClientCounters, Schedule, Step
from defensemble.load.recording import Recording


def open_step(rate: float, recording: Recording, *, late_share: float = 0.0) -> Step:
    """The step of an open loop that a recording is of."""
    return Step(
        callers=None,
        rate_per_s=rate,
        began_at="2026-01-01T00:00:00.000+00:00",
        seconds=recording.seconds,
        sent=recording.sent,
        answered=recording.answered,
        failed=recording.failed,
        failures=dict(recording.failures),
        unsent=recording.unsent,
        images=recording.images,
        requests_per_s=recording.answered / recording.seconds,
        images_per_s=recording.images / recording.seconds,
        goodput_per_s=None,
        attainment=recording.attainment(),
        latency_ms=recording.latency(),
        histogram=recording.encoded_histogram(),
        schedule=Schedule(late_share, 1000 * late_share),
        valid=late_share <= 0.01,
        problem=None,
        server_counters=None,
        client_counters=ClientCounters(recording.sent, recording.failed, recording.images),
        timeline=recording.timeline(),
    )
