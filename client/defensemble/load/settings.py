"""The settings of a load test, checked once, and how their texts are parsed."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .._client.checks import check_count, check_name, check_timeout
from .._client.model_info import names_from_outputs
from .._exceptions import InputError
from .result import Slo

ARRIVALS = ("poisson", "constant")
MAX_RATE_PER_S = 1e6
MAX_STEP_CALLS = 50_000_000  # arrivals that are scheduled beforehand, 16 bytes each
MAX_CALLERS = 4096  # threads
LONGEST_S = 86_400.0


@dataclass(frozen=True)
class LoadSettings:
    """The load and the calls of a test.

    Either `callers` or `rates` has the steps. A closed loop has callers that each wait for an answer before the next call. An open loop
    has a rate: the times of all calls are drawn beforehand, and latency is counted from them, so that a server that stalls cannot hide it.

    Attributes:
        callers: Number of callers of each step of a closed loop.
        rates: Calls per second of each step of an open loop.
        arrivals: `poisson`, or `constant` intervals, of an open loop.
        batch_sizes: Images per call, each with its share of the calls; the shares need not sum to 1.
        step_s: Seconds of each step.
        warm_up_s: Seconds before each step that do not count.
        ramp_s: Seconds before the warm-up in which the load rises linearly.
        slo: Latency objective; None for none.
        model: The model to call; None for the only ensemble.
        outputs: The outputs to request.
        timeout_s: Timeout of a call.
        max_in_flight: Most calls under way in an open loop; a call that finds no free slot counts as failed.
        processes: Processes that make the calls; None: one, and twice as many, up to the cores, where a warm-up shows that they do not
            suffice.
        seed: Seed of arrivals, batch sizes and random images.

    Raises:
        InputError: A value is invalid.

    Example:
        >>> LoadSettings(rates=(50, 100, 200), batch_sizes={1: 0.8, 16: 0.2}, slo=Slo(0.99, 50))
    """

    callers: Sequence[int] = ()
    rates: Sequence[float] = ()
    arrivals: Literal["poisson", "constant"] = "poisson"
    batch_sizes: Mapping[int, float] | int = 1
    step_s: float = 5.0
    warm_up_s: float = 1.0
    ramp_s: float = 0.0
    slo: Slo | None = None
    model: str | None = None
    outputs: Sequence[str] = ("probabilities",)
    timeout_s: float = 10.0
    max_in_flight: int = 512
    processes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.callers and self.rates:
            raise InputError("got callers and rates: pass callers for a closed loop, or rates for an open loop")
        for callers in _sequence(self.callers, "callers"):
            if check_count(callers, "the number of callers") > MAX_CALLERS:
                raise InputError(f"the number of callers must be at most {MAX_CALLERS}, got {callers}")
        if self.arrivals not in ARRIVALS:
            raise InputError(f"arrivals must be one of {', '.join(ARRIVALS)}; got {self.arrivals!r:.100}")
        step_s = _number(self.step_s, "step_s", 0.1, LONGEST_S)
        for rate in _sequence(self.rates, "rates"):
            if _number(rate, "a rate, in calls per second,", 1e-3, MAX_RATE_PER_S) * step_s > MAX_STEP_CALLS:
                raise InputError(f"a step of {step_s:g} s at {rate:g} calls/s has more than {MAX_STEP_CALLS:,} calls: make it shorter")
        for name, low, high in (("warm_up_s", 0.0, LONGEST_S), ("ramp_s", 0.0, LONGEST_S)):
            _number(getattr(self, name), name, low, high)
        check_timeout(self.timeout_s)
        if self.timeout_s > LONGEST_S:
            raise InputError(f"timeout_s must be at most {LONGEST_S:g}, got {self.timeout_s:g}")
        if check_count(self.max_in_flight, "max_in_flight") > MAX_CALLERS:
            raise InputError(f"max_in_flight must be at most {MAX_CALLERS}, got {self.max_in_flight}")
        if self.processes is not None and check_count(self.processes, "processes") > cores():
            raise InputError(f"processes must be at most {cores()}, the cores of this machine; got {self.processes}")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed must be an integer of 0 or more, got {self.seed!r:.100}")
        if self.slo is not None and not (0 < self.slo.quantile < 1 and 0 < self.slo.latency_ms < math.inf):
            raise InputError(f"an objective needs a quantile in (0, 1) and a positive latency, such as Slo(0.99, 50.0); got {self.slo!r}")
        check_name(self.model)
        names_from_outputs(self.outputs)
        self._check_batch_sizes()

    @property
    def is_open(self) -> bool:
        """Whether the loop is open."""
        return bool(self.rates)

    @property
    def batch_shares(self) -> tuple[tuple[int, float], ...]:
        """The batch sizes, in ascending order, with their shares, which sum to 1."""
        shares = {self.batch_sizes: 1.0} if isinstance(self.batch_sizes, int) else self.batch_sizes
        total = sum(shares.values())
        return tuple((size, share / total) for size, share in sorted(shares.items()))

    def _check_batch_sizes(self) -> None:
        if not isinstance(self.batch_sizes, Mapping):
            check_count(self.batch_sizes, "batch_sizes")
            return
        if not self.batch_sizes:
            raise InputError("batch_sizes is empty; expected sizes and shares, such as {1: 0.8, 16: 0.2}")
        for size, share in self.batch_sizes.items():
            check_count(size, "a batch size")
            _number(share, f"the share of batch size {size}", 1e-6, 1e6)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def slo_from_text(text: str) -> Slo:
    """Parse an objective such as `p99=50ms`, `p99.9=0.2s` or `p50=5ms`.

    Raises:
        InputError: The text is no objective.
    """
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)", text.strip(), re.ASCII)
    slo = None if match is None else Slo(round(float(match[1]) / 100, 12), float(match[2]) * (1000 if match[3] == "s" else 1))
    if slo is None or not (0 < slo.quantile < 1 and 0 < slo.latency_ms < math.inf):
        raise InputError(f"expected a quantile above p0 and below p100 and a latency, such as p99=50ms or p99.9=0.2s; got {text!r:.120}")
    return slo


def batch_sizes_from_text(text: str) -> dict[int, float]:
    """Parse batch sizes with shares, such as `1:0.8,16:0.2`; one size such as `16` needs none.

    Raises:
        InputError: The text has another form, or names a size twice.
    """
    sizes: dict[int, float] = {}
    parts = text.split(",")
    for part in parts:
        match = re.fullmatch(r"(\d{1,9})(?::(\d+(?:\.\d+)?))?", part.strip(), re.ASCII)
        if match is None or (match[2] is None and len(parts) > 1):
            raise InputError(f"expected a batch size such as 16, or sizes with shares such as 1:0.8,16:0.2; got {text!r:.120}")
        if int(match[1]) in sizes:
            raise InputError(f"batch size {match[1]} is named twice in {text!r:.120}; expected each size once")
        sizes[int(match[1])] = float(match[2] or 1)
    return sizes


def _sequence(values: Any, name: str) -> Sequence[Any]:
    if not isinstance(values, (list, tuple)):
        raise InputError(f"{name} must be a sequence of numbers, one for each step, such as (1, 2, 4); got {values!r:.100}")
    return values


def _number(value: Any, name: str, low: float, high: float) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name} must be a number from {low:g} to {high:g}, got {value!r:.100}")
    return float(value)
