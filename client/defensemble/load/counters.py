"""What a server counted while a step ran, from its statistics before and after it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .._client.client import Client
from .._exceptions import ServiceError
from .._transport.base import ModelStatistics
from .result import ModelCounters, ServerCounters

_NAMES = ("requests", "executions", "images", "failures", "success_ns", "queue_ns", "compute_ns")
_SETTLING_S = 0.5


@dataclass(frozen=True)
class Snapshot:
    """The statistics of a server at a time.

    Attributes:
        taken: Time by the monotonic clock.
        entries: The counters; None if the server reports none.
    """

    taken: float
    entries: Sequence[ModelStatistics] | None


def take_snapshot(client: Client) -> Snapshot:
    """Ask a server for its statistics. A server that has none, or does not respond, has no counters in the result."""
    try:
        entries = client.statistics()
    except ServiceError:
        entries = None
    return Snapshot(time.monotonic(), entries)


def take_final_snapshot(client: Client, before: Snapshot, models: Collection[str], answered: int) -> Snapshot:
    """Ask a server for its statistics after a step. A server counts a call shortly after it has sent the answer: this is waited for.

    Args:
        client: A client of the server.
        before: The snapshot before the step.
        models: The models that ran for each call.
        answered: Answered calls of the step.
    """
    deadline = time.monotonic() + _SETTLING_S
    while True:
        snapshot = take_snapshot(client)
        counted = counters_between(before, snapshot, models)
        if counted is None or all(model.requests >= answered for model in counted.models.values()) or time.monotonic() > deadline:
            return snapshot
        time.sleep(_SETTLING_S / 20)


def counters_between(before: Snapshot, after: Snapshot, models: Collection[str]) -> ServerCounters | None:
    """Return what was counted between two snapshots, or None if one is missing. A model that was loaded meanwhile counts from then on.

    Args:
        before: The first snapshot.
        after: The second one.
        models: The models to report; without any, all that got requests.
    """
    if before.entries is None or after.entries is None:
        return None
    earlier = {(entry.name, entry.version): entry for entry in before.entries}
    totals: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(_NAMES, 0))
    for entry in after.entries:
        since = earlier.get((entry.name, entry.version))
        # An edit of an ensemble loads it again.
        was_reset = since is not None and any(getattr(entry, name) < getattr(since, name) for name in _NAMES)
        for name in _NAMES:
            totals[entry.name][name] += getattr(entry, name) - (0 if since is None or was_reset else getattr(since, name))
    reported = {name: counts for name, counts in totals.items() if (name in models if models else counts["requests"])}
    return ServerCounters(after.taken - before.taken, {name: _model_counters(**counts) for name, counts in sorted(reported.items())})


def _model_counters(
    requests: int, executions: int, images: int, failures: int, success_ns: int, queue_ns: int, compute_ns: int
) -> ModelCounters:
    succeeded = requests - failures

    def mean_ms(total_ns: int) -> float | None:
        return total_ns / succeeded / 1e6 if succeeded else None

    mean_batch = images / executions if executions else None
    return ModelCounters(requests, executions, images, failures, mean_batch, mean_ms(queue_ns), mean_ms(compute_ns), mean_ms(success_ns))
