"""What happened in a step: latencies, failures by kind, and a timeline. Memory grows by 4 bytes for each call."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from .._exceptions import MissingExtraError
from .calling import LATE_S, UNSENT, CallRecord
from .result import Latency, Schedule, Slo, TimelineSecond

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

_LONGEST_US = 172_800_000_000  # two days: a timeout and a step, of a day each
_DIGITS = 3
_THIRDS = 3


def new_histogram() -> HdrHistogram:
    """Return an empty histogram of microseconds.

    Raises:
        MissingExtraError: The extra `load` is not installed.
    """
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError as error:
        raise MissingExtraError(f"load tests need the load extra ({error}): pip install 'defensemble[load]'") from error
    return HdrHistogram(1, _LONGEST_US, _DIGITS)


class Recording:
    """Adds up the calls of a step.

    Attributes:
        begin: Time of the beginning, by the monotonic clock.
        seconds: Seconds in which calls are made.
        sent: Calls that were sent.
        answered: Answered calls.
        unsent: Calls that found no free slot.
        failures: Failed calls by the class of the error.
        images: Images in the answered calls.
        within_slo: Answers within the objective.
        last_end: When the last call ended, in seconds from the beginning.
        shortest_s: The shortest latency of an answer; infinite without any.

    Args:
        seconds: Seconds in which calls are made.
        slo: The objective.

    Raises:
        MissingExtraError: The extra `load` is not installed.
    """

    def __init__(self, seconds: float, slo: Slo | None = None) -> None:
        self.begin = 0.0
        self.seconds = seconds
        self._slo = slo
        self._histogram = new_histogram()
        self._sum_s = self._max_s = 0.0
        self._late = 0
        self._max_late_s = 0.0
        self._in_flight_s = np.zeros(_THIRDS)  # seconds of calls under way, by third of the step
        self._counts: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0, 0])  # sent, answered, failed, by second
        self._latencies: defaultdict[int, list[NDArray[np.float32]]] = defaultdict(list)
        self.sent = self.answered = self.unsent = self.images = self.within_slo = 0
        self.failures: Counter[str] = Counter()
        self.last_end = 0.0
        self.shortest_s = math.inf

    @property
    def failed(self) -> int:
        """Calls that were sent and failed."""
        return sum(self.failures.values())

    def begin_at(self, time: float) -> None:
        """Set the time of the beginning."""
        self.begin = time

    def add(self, records: Sequence[CallRecord]) -> None:
        """Add calls that ended."""
        sent = [record for record in records if record.failure != UNSENT]
        self.unsent += len(records) - len(sent)
        if not sent:
            return
        self.sent += len(sent)
        self.failures.update(record.failure for record in sent if record.failure is not None)
        times = np.array([(record.intended, record.ended, record.late_s) for record in sent])
        intended, ended = times[:, 0] - self.begin, times[:, 1] - self.begin
        is_answer = np.array([record.failure is None for record in sent])
        self.images += sum(record.images for record in sent if record.failure is None)
        self.last_end = max(self.last_end, float(ended.max()))
        self._late += int(np.count_nonzero(times[:, 2] > LATE_S))
        self._max_late_s = max(self._max_late_s, float(times[:, 2].max()))
        edges = np.linspace(0, self.seconds, _THIRDS + 1)
        for third in range(_THIRDS):
            overlap = np.minimum(ended, edges[third + 1]) - np.maximum(intended, edges[third])
            self._in_flight_s[third] += float(overlap.clip(0).sum())
        self._add_latencies((ended - intended)[is_answer])
        self._add_seconds(intended, ended, is_answer)

    def latency(self) -> Latency | None:
        """Return the latencies of the answers; None without any."""
        if not self.answered:
            return None
        found = self._histogram.get_percentile_to_value_dict([50, 90, 99, 99.9])
        # The histogram rounds up to its precision: no quantile is above the exact maximum.
        p50, p90, p99, p99_9 = (min(found[percent] / 1000, self._max_s * 1000) for percent in (50, 90, 99, 99.9))
        return Latency(p50, p90, p99, p99_9, max=self._max_s * 1000, mean=self._sum_s * 1000 / self.answered)

    def quantile_ms(self, quantile: float) -> float:
        """Return a quantile over all calls, the failed and unsent ones as infinite; 0 without any calls."""
        total = self.sent + self.unsent
        rank = math.ceil(quantile * total - 1e-9)
        if rank > self.answered:
            return math.inf
        value = 0.0 if not rank else self._histogram.get_value_at_percentile(100 * rank / self.answered) / 1000
        return min(value, self._max_s * 1000)

    def encoded_histogram(self) -> str:
        """Return the histogram in its interchange format (V2, compressed, base64)."""
        encoded: bytes = self._histogram.encode()
        return encoded.decode()

    def attainment(self) -> float | None:
        """Return the share of all calls that were answered within the objective; None without an objective or calls."""
        total = self.sent + self.unsent
        return None if self._slo is None or not total else self.within_slo / total

    def schedule(self) -> Schedule:
        """Return how well the generator kept its schedule."""
        return Schedule(self._late / self.sent if self.sent else 0.0, self._max_late_s * 1000)

    def in_flight(self) -> tuple[float, float]:
        """Return the mean number of calls under way in the first and in the last third of the step."""
        third_s = self.seconds / _THIRDS
        return float(self._in_flight_s[0]) / third_s, float(self._in_flight_s[-1]) / third_s

    def latest_second(self, now: float) -> TimelineSecond | None:
        """Return the last complete second, for a live view; None in the first.

        Args:
            now: The time, by the monotonic clock.
        """
        second = int(now - self.begin) - 2  # processes report once a second
        return self._second(second) if second >= 0 else None

    def timeline(self, *, with_latency: bool = True) -> tuple[TimelineSecond, ...]:
        """Return all seconds, from the first to that of the last end.

        Args:
            with_latency: Whether to report latencies.
        """
        seconds = [self._second(second) for second in range(max(self._counts, default=-1) + 1)]
        if not with_latency:
            seconds = [msgspec.structs.replace(second, p50_ms=None, p99_ms=None, max_ms=None) for second in seconds]
        return tuple(seconds)

    def _add_latencies(self, latencies_s: NDArray[np.float64]) -> None:
        if not len(latencies_s):
            return
        self.answered += len(latencies_s)
        self._sum_s += float(latencies_s.sum())
        self._max_s = max(self._max_s, float(latencies_s.max()))
        self.shortest_s = min(self.shortest_s, float(latencies_s.min()))
        if self._slo is not None:
            self.within_slo += int(np.count_nonzero(latencies_s * 1000 <= self._slo.latency_ms))
        for value, count in zip(*np.unique(np.maximum(np.rint(latencies_s * 1e6), 1).astype(np.int64), return_counts=True), strict=True):
            self._histogram.record_value(int(value), int(count))

    def _add_seconds(self, intended: NDArray[np.float64], ended: NDArray[np.float64], is_answer: NDArray[np.bool_]) -> None:
        in_second = ended.astype(np.int64)
        for second in np.unique(in_second).tolist():
            here = in_second == second
            self._counts[second][1] += int(np.count_nonzero(here & is_answer))
            self._counts[second][2] += int(np.count_nonzero(here & ~is_answer))
            self._latencies[second].append((ended - intended)[here & is_answer].astype(np.float32))
        for second, count in zip(*np.unique(intended.astype(np.int64), return_counts=True), strict=True):
            self._counts[int(second)][0] += int(count)

    def _second(self, second: int) -> TimelineSecond:
        sent, answered, failed = self._counts.get(second, (0, 0, 0))
        parts = self._latencies.get(second)
        if not answered or not parts:
            return TimelineSecond(second, sent, answered, failed, None, None, None)
        return TimelineSecond(second, sent, answered, failed, *np.quantile(1000 * np.concatenate(parts), [0.5, 0.99, 1.0]).tolist())
