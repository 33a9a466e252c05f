"""A running load test: its targets, its processes, and one step after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from defensemble_repository.filesystem.signals import defer_sigint

from .._client.client import Client
from .._client.images import images_from_input
from .._client.model_info import ModelInfo, requests_from_outputs
from .._client.retries import RetryPolicy
from .._exceptions import InputError
from .._transport.address import TLS_SCHEMES, address_from_url
from .._transport.base import ConnectionOptions, TlsFiles
from ..results.provenance import provenance
from .calling import CallRecord, ClosedPhase, OpenPhase, TargetSpec
from .counters import counters_between, take_final_snapshot, take_snapshot
from .display import load_name
from .recording import Recording, new_histogram
from .result import Capacity, LoadResult, RunSettings, ServerCounters, ServerInfo, Step, TargetResult, TimelineSecond
from .schedule import arrival_times, draw_batch_sizes
from .settings import LoadSettings, cores
from .worker import GeneratorProcesses, Phase, PhaseEnd

if TYPE_CHECKING:
    from .._client.images import Images

    ImagesToSend: TypeAlias = "Images | Callable[[ModelInfo], NDArray[np.float32]]"

MAX_LATE_SHARE = 0.01
"""Of a valid step, at most this share of the calls was sent more than 1 ms late by the generator's own fault."""
_BUSY_SHARE = 0.85  # of a core: the callers of a process that uses more may be what limits the load
_RANDOM_IMAGES = 64
_DRAWN_SIZES = 10_000  # of the callers of a process, before they repeat


@dataclass(frozen=True)
class Progress:
    """What a test is doing, about once a second.

    Attributes:
        url: The target.
        load: The load, such as `8 callers` or `50/s`.
        phase: `warm-up` or `step`.
        elapsed_s: Seconds since the phase began.
        phase_s: Seconds that it takes.
        second: The latest complete second; None for none.
        step: The result of a step that is complete; None before that.
        note: What the user should know, such as that processes were added.

    Example:
        >>> run_load(urls, settings, on_progress=lambda progress: print(progress.load, progress.elapsed_s))
    """

    url: str
    load: str
    phase: str
    elapsed_s: float = 0.0
    phase_s: float = 0.0
    second: TimelineSecond | None = None
    step: Step | None = None
    note: str | None = None


OnProgress = Callable[[Progress], None]


class LoadTarget:
    """A target of a running test.

    Args:
        index: Its index.
        url: The server.
        settings: The settings of the test.
        images: The images, as the caller passed them.
        tls: PEM files.

    Raises:
        InputError: The model does not accept the calls.
        ServiceError: The server cannot be reached.
    """

    def __init__(self, index: int, url: str, settings: LoadSettings, images: ImagesToSend | None, tls: TlsFiles | None) -> None:
        own_tls = tls if address_from_url(url).scheme in TLS_SCHEMES else None
        self.index = index
        self.url = url
        self.client = Client(url, settings.model, timeout_s=settings.timeout_s, retry=RetryPolicy(max_retries=0), tls=own_tls)
        try:
            self.info = info = self.client.describe()
            largest = settings.batch_shares[-1][0]
            if info.max_batch_size is not None and largest > max(info.max_batch_size, 1):
                raise InputError(
                    f"model {info.name!r} on {url} takes at most {info.max_batch_size} images per call, got a batch size of {largest}"
                )
            found = _find_images(images, info, max(_RANDOM_IMAGES, largest), settings.seed)
            self.image_count = len(found)
            pool = found if len(found) >= 2 * largest else np.resize(found, (2 * largest, *found.shape[1:]))  # repeated
            outputs = requests_from_outputs(tuple(settings.outputs), info)
            self.spec = TargetSpec(url, ConnectionOptions(tls=own_tls), info, outputs, pool, settings.timeout_s)
            metadata = self.client.server_metadata()
        except BaseException:
            self.client.close()
            raise
        self.server = ServerInfo(metadata.name, metadata.version)
        self.models = {info.name, *info.steps} if info.steps or not info.is_ensemble else set()
        self.steps: list[Step] = []


class LoadSession:
    """A running test. In its block Ctrl-C raises nothing: it sets `is_interrupted`.

    Attributes:
        targets: The targets.
        is_interrupted: Whether Ctrl-C was pressed.

    Args:
        urls: See `run_load`, as for the others.
        settings: The settings.
        images: The images.
        images_name: Their name.
        tls: PEM files.
        on_progress: Called about once a second.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        settings: LoadSettings,
        images: ImagesToSend | None,
        images_name: str | None,
        tls: TlsFiles | None,
        on_progress: OnProgress,
    ) -> None:
        new_histogram()  # raises an error now if the extra is missing
        self._settings = settings
        self._images_name = "random" if images is None else images_name or "array"
        self._on_progress = on_progress
        self.targets: list[LoadTarget] = []
        self._cleanup = ExitStack()
        try:
            for index, url in enumerate(_distinct(urls)):
                self.targets.append(LoadTarget(index, url, settings, images, tls))
                self._cleanup.callback(self.targets[-1].client.close)
            specs = [target.spec for target in self.targets]
            processes = GeneratorProcesses(specs, settings.processes or 1, keeps_schedule=settings.is_open)
            self._processes = self._cleanup.enter_context(processes)
            self._interrupts = self._cleanup.enter_context(defer_sigint())
            self._interrupts.mark_committed()  # the results so far are returned
        except BaseException:
            self._cleanup.close()
            raise
        self._was_stopped = self._is_realtime = False

    def __enter__(self) -> LoadSession:
        return self

    def __exit__(self, *error: object) -> None:
        self._cleanup.close()

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._was_stopped or self._interrupts.is_pending

    def result(self, capacities: Mapping[str, Capacity] | None = None) -> LoadResult:
        """Return the result so far.

        Args:
            capacities: The capacities that were found, by URL.
        """
        settings, found = self._settings, capacities or {}
        common = RunSettings(
            loop="open" if settings.is_open else "closed",
            arrivals=settings.arrivals if settings.is_open else None,
            batch_sizes=settings.batch_shares,
            images=self._images_name,
            image_count=min(target.image_count for target in self.targets),
            warm_up_s=float(settings.warm_up_s),
            ramp_s=float(settings.ramp_s),
            step_s=float(settings.step_s),
            outputs=tuple(settings.outputs),
            timeout_s=float(settings.timeout_s),
            max_in_flight=settings.max_in_flight,
            slo=settings.slo,
            seed=settings.seed,
            processes=len(self._processes),
            realtime=self._is_realtime,
        )
        targets = []
        for target in self.targets:
            shape, steps = target.spec.images.shape[1:], tuple(target.steps)
            targets.append(TargetResult(target.url, target.info.name, target.server, shape, steps, found.get(target.url)))
        about = provenance()
        del about["server"]
        return LoadResult(**about, settings=common, targets=tuple(targets), interrupted=self.is_interrupted)

    def single_caller_rate(self, target: LoadTarget) -> float:
        """Return the calls per second of a single caller, from a short phase that is not reported."""
        seconds = max(self._settings.warm_up_s, 1.0)
        recording, _ = self._run(target, "1 caller", [self._closed_phase([0.0], seconds, target, is_step=False)], seconds, "warm-up")
        return max(recording.answered / seconds, 1.0)

    def run_step(self, target: LoadTarget, load: float) -> tuple[Recording, Step]:
        """Warm up, and measure one load on one target; add processes where the warm-up shows that they do not suffice."""
        settings, name = self._settings, load_name(load, is_open=self._settings.is_open)
        warm_up_s = settings.ramp_s + settings.warm_up_s
        while warm_up_s > 0 and not self.is_interrupted:
            phases = self._phases(target, load, warm_up_s, settings.ramp_s, is_step=False)
            recording, end = self._run(target, name, phases, warm_up_s, "warm-up")
            if self.is_interrupted or not self._add_processes(
                target, name, recording, end, most=int(load) if not settings.is_open else None
            ):
                break
        began_at, before = datetime.now(timezone.utc), take_snapshot(target.client)
        phases = self._phases(target, load, settings.step_s, 0.0, is_step=True)
        recording, end = self._run(target, name, phases, settings.step_s, "step")
        counters = counters_between(before, take_final_snapshot(target.client, before, target.models, recording.answered), target.models)
        step = self._step(recording, load, end, began_at, counters)
        if step.sent + step.unsent or not self.is_interrupted:
            target.steps.append(step)
            self._on_progress(Progress(target.url, name, "step", settings.step_s, settings.step_s, step=step))
        return recording, step

    def _add_processes(self, target: LoadTarget, name: str, recording: Recording, end: PhaseEnd, most: int | None) -> bool:
        """Double the processes if they do not suffice and more are allowed. Returns whether there are more."""
        now = len(self._processes)
        limit = min(cores(), cores() if most is None else most)
        is_short = recording.schedule().late_share > MAX_LATE_SHARE if most is None else end.cpu_share > _BUSY_SHARE
        if self._settings.processes is not None or now >= limit or not is_short:
            return False
        self._processes.grow(min(2 * now, limit))
        note = f"{now} process{'es do' if now > 1 else ' does'} not suffice for {name}: {len(self._processes)} make the calls from now on"
        self._on_progress(Progress(target.url, name, "warm-up", note=note))
        return True

    def _run(self, target: LoadTarget, name: str, phases: Sequence[Phase], seconds: float, kind: str) -> tuple[Recording, PhaseEnd]:
        recording = Recording(seconds, self._settings.slo)

        def on_records(records: Sequence[CallRecord]) -> None:
            recording.add(records)
            now = time.monotonic()
            elapsed_s = min(max(now - recording.begin, 0.0), seconds)
            self._on_progress(Progress(target.url, name, kind, elapsed_s, seconds, recording.latest_second(now)))

        self._on_progress(Progress(target.url, name, kind, 0.0, seconds))
        end = self._processes.run(target.index, phases, recording.begin_at, on_records, self._interrupts)
        self._was_stopped |= end.was_stopped
        self._is_realtime = end.is_realtime
        return recording, end

    def _phases(self, target: LoadTarget, load: float, seconds: float, ramp_s: float, *, is_step: bool) -> list[Phase]:
        """Share a load among the processes."""
        settings, count = self._settings, len(self._processes)
        if not settings.is_open:
            callers = int(load)
            starts = [ramp_s * number / callers for number in range(callers)]
            return [self._closed_phase(starts[first::count], seconds, target, is_step) for first in range(min(count, callers))]
        # The same calls for each target; others for each step.
        rng = np.random.default_rng((settings.seed, len(target.steps), is_step))
        times = arrival_times(settings.arrivals, load, seconds, ramp_s, rng)
        sizes = draw_batch_sizes(settings.batch_shares, len(times), rng)
        count = min(count, settings.max_in_flight)
        slots = [settings.max_in_flight // count + (number < settings.max_in_flight % count) for number in range(count)]
        return [OpenPhase(times[first::count], sizes[first::count], slots[first]) for first in range(count)]

    def _closed_phase(self, starts: Sequence[float], seconds: float, target: LoadTarget, is_step: bool) -> ClosedPhase:
        rng = np.random.default_rng((self._settings.seed, len(target.steps), is_step, len(starts)))
        return ClosedPhase(starts, seconds, draw_batch_sizes(self._settings.batch_shares, _DRAWN_SIZES, rng))

    def _step(self, recording: Recording, load: float, end: PhaseEnd, began_at: datetime, counters: ServerCounters | None) -> Step:
        settings = self._settings
        if settings.is_open:
            # The first answer cannot come earlier than the shortest latency after the beginning.
            seconds = max(
                0.0 if end.was_stopped else settings.step_s, recording.last_end - (recording.shortest_s if recording.answered else 0.0)
            )
        else:
            seconds = float(np.mean(end.busy_s)) if end.busy_s else 0.0
        schedule = recording.schedule() if settings.is_open else None
        is_valid, problem = judge_step(settings, recording, end, seconds)
        is_judged = is_valid and settings.slo is not None
        per_s = 1 / seconds if seconds else 0.0
        return Step(
            callers=None if settings.is_open else int(load),
            rate_per_s=float(load) if settings.is_open else None,
            began_at=began_at.isoformat(timespec="milliseconds"),
            seconds=seconds,
            sent=recording.sent,
            answered=recording.answered,
            failed=recording.failed,
            failures=dict(sorted(recording.failures.items())),
            unsent=recording.unsent,
            images=recording.images,
            requests_per_s=recording.answered * per_s,
            images_per_s=recording.images * per_s,
            goodput_per_s=recording.within_slo * per_s if is_judged else None,
            attainment=recording.attainment() if is_judged else None,
            latency_ms=recording.latency() if is_valid else None,
            histogram=recording.encoded_histogram() if is_valid and recording.answered else None,
            schedule=schedule,
            valid=is_valid,
            problem=problem,
            server_counters=counters,
            client_counters=end.counters,
            timeline=recording.timeline(with_latency=is_valid),
        )


def judge_step(settings: LoadSettings, recording: Recording, end: PhaseEnd, seconds: float) -> tuple[bool, str | None]:
    """Return whether the generator kept its schedule in a step, and what else a reader of its result must know, if anything.

    Args:
        settings: The settings of the test.
        recording: The calls.
        end: How the step ended.
        seconds: Its length.
    """
    schedule = recording.schedule()
    if settings.is_open and schedule.late_share > MAX_LATE_SHARE:
        return False, (
            f"the load generator sent {100 * schedule.late_share:.1f} % of the calls more than 1 ms late (the largest delay is "
            f"{schedule.max_late_ms:.1f} ms; at most {100 * MAX_LATE_SHARE:g} % is allowed): no latency is reported. Run it on another "
            "machine than the server, with more cores, or with real-time priority (as root, or after `ulimit -r 1`)."
        )
    problem = None
    if end.was_stopped:
        problem = f"interrupted after {seconds:.1f} of {settings.step_s:g} s"
    elif not recording.sent + recording.unsent:
        problem = "the step is too short for a call at this rate: no call was due"
    elif not recording.answered:
        problem = "no call was answered"
    elif not settings.is_open and end.cpu_share > _BUSY_SHARE:
        problem = f"the load generator used {100 * end.cpu_share:.0f} % of a core: the server may be faster"
    return True, problem


def _distinct(urls: str | Sequence[str]) -> list[str]:
    given = [urls] if isinstance(urls, str) else list(urls)
    if not given:
        raise InputError("no server was named: pass its URL, such as http://localhost:8000")
    normalised = [address_from_url(url).url for url in given]
    for url in normalised:
        if normalised.count(url) > 1:
            raise InputError(f"{url} is named {normalised.count(url)} times; expected each server once")
    return normalised


def _find_images(images: ImagesToSend | None, info: ModelInfo, count: int, seed: int) -> NDArray[np.float32]:
    if images is None:
        if min(info.image_shape) <= 0:
            raise InputError(f"model {info.name!r} takes images of any size: pass images, since random ones need a size")
        return np.random.default_rng(seed).random((count, *info.image_shape), np.float32)
    return np.ascontiguousarray(images_from_input(images(info) if callable(images) else images, info))
