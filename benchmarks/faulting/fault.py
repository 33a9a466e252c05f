"""What a fault is, and what is known of one that was injected."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.faulting.stage import Stage

BEGIN, END, DETECTION = "the fault", "its end", "detection"
"""From when the seconds to recover count."""
REFUSED, CLOSED, UNANSWERED, UNREACHED, ACCEPTED = "refused", "closed", "unanswered", "not reached", "accepted"
"""What became of a hostile request: an error; a closed connection; nothing in time; no connection; an answer as if it were valid."""

TRUNCATED = "accepted by core 2.51, which keeps 32 bits of a batch"


@dataclass
class Injection:
    """A fault that was injected. Times are in seconds of `time.monotonic`.

    Attributes:
        began: When it began.
        ended: When it was over: its last request was sent, or its process was dead. Service may still be disturbed.
        requests: Number of hostile requests by outcome.
        accepted: Descriptions of hostile requests that were answered as if they were valid.
        facts: What else is worth a line in the result.
    """

    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    def add(self, outcome: str, description: str = "") -> None:
        """Count a hostile request."""
        self.requests[outcome] += 1
        if outcome == ACCEPTED:
            self.accepted.append(description)

    def end(self) -> Injection:
        """Set the end to now, and return this injection."""
        self.ended = time.monotonic()
        return self


@dataclass(frozen=True)
class Fault:
    """A row of the fault table.

    Attributes:
        name: Its name on the command line.
        action: What is done.
        expected: What the service is expected to do.
        inject: Does it, on a stage with load.
        reference: From when the seconds to recover count: `BEGIN`, `END` or `DETECTION`.
        replicas: Number of servers. With several, callers use the client's default retry policy, else none.
        may_fail: Whether calls of others may fail meanwhile.
        keeps_rate: Whether others must have at least half of their calls per second meanwhile.
        may_answer_wrong: Whether answers may be wrong until the fault is detected: this cannot be noticed before.
        small_shm: Whether /dev/shm is a small one of its own.
        small_disk: Whether repository, log and state are on a small disk of their own.
    """

    name: str
    action: str
    expected: str
    inject: Callable[[Stage], Injection]
    reference: str = END
    replicas: int = 1
    may_fail: bool = True
    keeps_rate: bool = False
    may_answer_wrong: bool = False
    small_shm: bool = False
    small_disk: bool = False

    @property
    def needs_mounts(self) -> bool:
        """Whether it needs mounts of its own, which root may make."""
        return self.small_shm or self.small_disk


@dataclass(frozen=True)
class Effort:
    """How long and how much.

    Attributes:
        warm_s: Seconds of load before a fault.
        flood_s: Seconds of a fault that lasts.
        settle_s: Seconds of load after the service has recovered.
        patience_s: Seconds to wait for recovery.
        requests: Number of random requests per port.
        slow_clients: Number of slow and half-open clients.
        closes: Number of gRPC channels that are closed during calls.
        inflated_bytes: Size of a compressed body once inflated.
    """

    warm_s: float
    flood_s: float
    settle_s: float
    patience_s: float
    requests: int
    slow_clients: int
    closes: int
    inflated_bytes: int


FULL = Effort(
    warm_s=3.0, flood_s=10.0, settle_s=3.0, patience_s=60.0, requests=300, slow_clients=500, closes=1000, inflated_bytes=3_000_000_000
)
QUICK = Effort(warm_s=0.5, flood_s=1.5, settle_s=0.5, patience_s=30.0, requests=40, slow_clients=500, closes=60, inflated_bytes=300_000_000)


def outcomes_text(requests: Mapping[str, int]) -> str:
    """Return the number of hostile requests by outcome, in words."""
    return ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(requests.items())) or "none"
