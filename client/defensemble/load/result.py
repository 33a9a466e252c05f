"""The result of a load test, as values and as JSON (`defensemble.load/1`)."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from .._exceptions import InputError

SCHEMA = "defensemble.load/1"
MAX_FILE_BYTES = 1 << 28
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Slo(msgspec.Struct, frozen=True):
    """A latency objective: a quantile of the calls that were sent is at most `latency_ms`. A failed call counts as infinitely slow.

    Attributes:
        quantile: In (0, 1), such as 0.99.
        latency_ms: Milliseconds.

    Example:
        >>> Slo(0.99, 50.0)
    """

    quantile: float
    latency_ms: float

    def __str__(self) -> str:
        return f"{self.name}={self.latency_ms:g}ms"

    @property
    def name(self) -> str:
        """The quantile's name, such as `p99`."""
        return f"p{100 * self.quantile:.10g}"


class ServerInfo(msgspec.Struct, frozen=True):
    """Name and version of a server, as it reports them.

    Example:
        >>> result.targets[0].server
        ServerInfo(name='triton', version='2.51.0')
    """

    name: str
    version: str


class RunSettings(msgspec.Struct, frozen=True):
    """What all steps of a test have in common.

    Attributes:
        loop: `closed` (callers) or `open` (a rate).
        arrivals: `constant` or `poisson`; None in a closed loop.
        batch_sizes: Pairs of a batch size and its share of the calls; the shares sum to 1.
        images: `random`, or where the images came from.
        image_count: Number of different images.
        warm_up_s: Seconds before each step that do not count, without the ramp.
        ramp_s: Seconds before the warm-up in which the load rises linearly.
        step_s: Seconds of each step.
        outputs: The requested outputs.
        timeout_s: Timeout of a call.
        max_in_flight: Most calls under way in an open loop.
        slo: The latency objective; None for none.
        seed: Seed of arrivals, batch sizes and random images.
        processes: Processes that made the calls of the last step.
        realtime: Whether they had real-time priority (`SCHED_RR`), which those of an open loop get if the system allows it, as for root.

    Example:
        >>> result.settings.loop, result.settings.step_s
        ('closed', 5.0)
    """

    loop: str
    arrivals: str | None
    batch_sizes: tuple[tuple[int, float], ...]
    images: str
    image_count: int
    warm_up_s: float
    ramp_s: float
    step_s: float
    outputs: tuple[str, ...]
    timeout_s: float
    max_in_flight: int
    slo: Slo | None
    seed: int
    processes: int
    realtime: bool


class Latency(msgspec.Struct, frozen=True):
    """Latencies of the answered calls in milliseconds, from an HdrHistogram with three significant digits; max and mean are exact.

    Example:
        >>> step.latency_ms.p99
    """

    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    mean: float

    def __post_init__(self) -> None:
        ascending = (0.0, self.p50, self.p90, self.p99, self.p99_9)
        if list(ascending) != sorted(ascending) or self.p99_9 > self.max * 1.002:  # three digits
            raise ValueError(f"expected latencies that are not negative, in ascending order, got {(*ascending[1:], self.max)}")


class Schedule(msgspec.Struct, frozen=True):
    """How well the generator kept its schedule of an open loop.

    Attributes:
        late_share: Share of the calls that were sent more than 1 ms late although a slot was free.
        max_late_ms: The largest delay of such a call; of any call with a free slot if none was more than 1 ms late.

    Example:
        >>> step.schedule.late_share <= 0.01
    """

    late_share: float
    max_late_ms: float


class ModelCounters(msgspec.Struct, frozen=True):
    """What a server counted for one model in a window.

    Attributes:
        requests: Finished requests, failed ones included.
        executions: Executions of the model; requests that are batched together count as one.
        images: Images in the successful requests.
        failures: Failed requests.
        mean_batch: Images per execution; None without executions.
        queue_ms: Mean time in the queue of the successful requests; None without any, as for the next two.
        compute_ms: Mean time of computing, input and output included.
        success_ms: Mean time from arrival to response.

    Example:
        >>> step.server_counters.models["ensemble"].queue_ms
    """

    requests: int
    executions: int
    images: int
    failures: int
    mean_batch: float | None
    queue_ms: float | None
    compute_ms: float | None
    success_ms: float | None


class ServerCounters(msgspec.Struct, frozen=True):
    """What a server counted between two readings of its statistics, before the first and after the last call of a step.

    Attributes:
        window_s: Seconds between the two.
        models: The counters by the name of the model.

    Example:
        >>> sorted(step.server_counters.models)
        ['alpha', 'beta', 'ensemble']
    """

    window_s: float
    models: dict[str, ModelCounters]


class ClientCounters(msgspec.Struct, frozen=True):
    """What was counted in the same window where the calls were made, independently of the other numbers of the step.

    Attributes:
        requests: Requests that were sent.
        failures: Those without an answer, or with an error. A wrong answer, which the step counts as failed, is none of them.
        images: Images in the answered requests.

    Example:
        >>> step.client_counters.requests == step.server_counters.models["ensemble"].requests
    """

    requests: int
    failures: int
    images: int


class TimelineSecond(msgspec.Struct, frozen=True):
    """One second of a step.

    Attributes:
        s: The second, from 0.
        sent: Calls whose intended time is in it.
        answered: Answers that came in it.
        failed: Failures that came in it.
        p50_ms: Median latency of its answers; None without any, as for the next two.
        p99_ms: 99th percentile of them.
        max_ms: The largest.

    Example:
        >>> [second.answered for second in step.timeline]
    """

    s: int
    sent: int
    answered: int
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None


class Step(msgspec.Struct, frozen=True):
    """One step of a test: one load on one target.

    Attributes:
        callers: Callers of a closed loop; None in an open one.
        rate_per_s: Intended calls per second of an open loop; None in a closed one.
        began_at: Beginning of the measured window, ISO 8601.
        seconds: Length of the window. Closed loop: the mean time for which the callers called. Open loop: the time in which the answers
            came, at least that of the schedule.
        sent: Calls that were sent in the window. All of them are waited for.
        answered: Calls that were answered.
        failed: Calls that failed.
        failures: Failed calls by the class of the error.
        unsent: Calls of an open loop that were not sent because `max_in_flight` calls were under way.
        images: Images in the answered calls.
        requests_per_s: Answered calls per second.
        images_per_s: Images in them per second.
        goodput_per_s: Answers within the objective per second; None without an objective or if the step is invalid.
        attainment: Share of the sent and unsent calls that were answered within the objective; None as above.
        latency_ms: From sending in a closed loop, from the intended time in an open one. None without answers or if the step is invalid.
        histogram: The latencies in microseconds as an HdrHistogram (V2, compressed, base64); None as above.
        schedule: How well the generator kept its schedule; None in a closed loop.
        valid: Whether the generator kept its schedule; always true in a closed loop, where `problem` reports a generator at its limit.
        problem: Why it is invalid, or what else happened, such as an interruption.
        server_counters: The server's counters for the window; None if it has no statistics.
        client_counters: The client's counters for the window.
        timeline: The seconds of the window, in order.

    Example:
        >>> step = result.targets[0].steps[0]
        >>> step.callers, step.requests_per_s, step.failures
    """

    callers: int | None
    rate_per_s: float | None
    began_at: str
    seconds: _NotNegative
    sent: _Count
    answered: _Count
    failed: _Count
    failures: dict[str, _Count]
    unsent: _Count
    images: _Count
    requests_per_s: _NotNegative
    images_per_s: _NotNegative
    goodput_per_s: float | None
    attainment: float | None
    latency_ms: Latency | None
    histogram: str | None
    schedule: Schedule | None
    valid: bool
    problem: str | None
    server_counters: ServerCounters | None
    client_counters: ClientCounters
    timeline: tuple[TimelineSecond, ...]

    def __post_init__(self) -> None:
        datetime.fromisoformat(self.began_at)
        if (self.callers is None) == (self.rate_per_s is None):
            raise ValueError(f"expected either callers or a rate in a step, got {self.callers} and {self.rate_per_s}")
        if self.answered + self.failed != self.sent or sum(self.failures.values()) != self.failed:
            raise ValueError(f"{self.answered} answered and {self.failed} failed calls ({self.failures}) are not the {self.sent} sent")

    def holds(self, slo: Slo) -> bool:
        """Return whether the step holds an objective; an invalid one and one without calls do not."""
        return self.attainment is not None and self.attainment >= slo.quantile


class Trial(msgspec.Struct, frozen=True):
    """One rate that the search for the capacity tried.

    Attributes:
        rate_per_s: The rate.
        attainment: Share of the calls that were answered within the objective; None without calls or if the trial is invalid.
        quantile_ms: The objective's quantile over all calls, failures as infinite; None if it is infinite, or as above.
        holds: Whether the rate holds.
        problem: Why it does not hold; None if it does.
        valid: Whether the generator kept its schedule.

    Example:
        >>> [(trial.rate_per_s, trial.holds) for trial in capacity.tried]
    """

    rate_per_s: float
    attainment: float | None
    quantile_ms: float | None
    holds: bool
    problem: str | None
    valid: bool = True


class Capacity(msgspec.Struct, frozen=True):
    """The highest rate that holds.

    Attributes:
        rate_per_s: The rate; None if no rate that was tried holds.
        tried: All trials, in order.
        bracket: The highest rate that holds and the lowest that does not; None for a bound that was not found.
        problem: What kept the search from its end; None if nothing did.

    Example:
        >>> result.targets[0].capacity.rate_per_s
    """

    rate_per_s: float | None
    tried: tuple[Trial, ...]
    bracket: tuple[float | None, float | None]
    problem: str | None


class TargetResult(msgspec.Struct, frozen=True):
    """A model on a server, and its results.

    Attributes:
        url: The server's URL.
        model: Name of the model.
        server: Name and version of the server; None if it does not report them.
        images_shape: (C, H, W) of the images that were sent.
        steps: The steps, in order; those of the capacity's trials.
        capacity: The capacity; None if it was not searched.

    Example:
        >>> [(target.url, len(target.steps)) for target in result.targets]
    """

    url: str
    model: str
    server: ServerInfo | None
    images_shape: tuple[int, ...]
    steps: tuple[Step, ...]
    capacity: Capacity | None


class LoadResult(msgspec.Struct, frozen=True):
    """The result of a load test.

    Attributes:
        measured_at: Time of the end, ISO 8601.
        hardware: The machine of the client.
        versions: Versions on it.
        git_commit: Commit of the checkout; None outside of one.
        settings: What all steps have in common.
        targets: The targets, in the order of the call.
        interrupted: Whether the test was interrupted; the last step may then be shorter.

    Example:
        >>> result = read_load_result("load.json")
        >>> [step.latency_ms for step in result.targets[0].steps]
    """

    measured_at: str
    hardware: dict[str, Any]
    versions: dict[str, Any]
    git_commit: str | None
    settings: RunSettings
    targets: Annotated[tuple[TargetResult, ...], msgspec.Meta(min_length=1)]
    interrupted: bool = False

    def json(self) -> dict[str, Any]:
        """Return the result as values for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return {"schema": SCHEMA, **values}


def read_load_result(path: str | os.PathLike[str]) -> LoadResult:
    """Read the result of a load test.

    Args:
        path: A file that `defensemble load --json FILE` wrote.

    Raises:
        InputError: The file is not such a result, or is damaged. The error names it.
        OSError: The file cannot be read.
    """
    from defensemble_repository.filesystem.regular_files import read_user_file
    from defensemble_repository.records import checked_schema, parse_json, record_from_values

    path = Path(path)
    try:
        return record_from_values(checked_schema(parse_json(read_user_file(path, MAX_FILE_BYTES)), SCHEMA), LoadResult)
    except ValueError as error:
        raise InputError(
            f"{path} is not the result of a load test: {error}. Pass a file that `defensemble load --json FILE` wrote."
        ) from error
