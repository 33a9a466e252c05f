"""A soak: load, edits, probes and aborted calls at once, while memory, descriptors, threads and /dev/shm are sampled."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.giving_up import PLAIN, REFUSED, AbortingCallers, Outcome
from benchmarks.common.answers import Array, expected_outputs
from benchmarks.common.callers import CONTEXT, Job, running_callers
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.processes import children, pss_bytes
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from benchmarks.common.watching import find_leftovers, list_shared_memory
from benchmarks.editing.answers import MIN_DIFFERENCE, Call, Verdict, min_difference, state_probabilities, verify_calls
from benchmarks.editing.asking import LoopingCallers
from benchmarks.editing.plan import Change, State, apply_change, draw_changes
from benchmarks.editing.under_load import initial_state, version_counts, version_logits
from benchmarks.faulting.stage import CHECK_INTERVAL_S
from defensemble import Client, DefensembleError
from defensemble.ensembles import Ensembles
from defensemble.probes import LabelledImages, Noise, measure, served_targets
from defensemble_export import ExportedMember, planned_files, write_files
from defensemble_repository.errors import RepositoryError
from defensemble_server import Server, ServerEvent

STEADY = "steady"
"""An ensemble of the same members that nobody edits: probes and aborted calls use it."""
EDIT_EVERY_S, SAMPLE_EVERY_S, ABORTS_EVERY_S = 3.0, 2.0, 2.0
CALLERS, BATCH = 2, 4  # per protocol; images per call
_ABORTS: Mapping[str, Mapping[str, int]] = {"grpc": {"deadline": 10, "cancel": 10}, "http": {"expire": 10, "close": 5}}
_CHUNK = 6  # edits that are drawn together, so that some can be rolled back
_PROBE_IMAGES = 16


@dataclass(frozen=True)
class Sample:
    """Resources of Triton, of its guard and the supervisor at one time, and the entries of /dev/shm that are new on the machine."""

    at: float
    triton_pid: int
    pss_bytes: int
    open_files: int
    threads: int
    guard_pss_bytes: int
    shared_memory: int


@dataclass(frozen=True)
class ProbeRounds:
    """A caller that probes a model again and again, and counts the queries that failed."""

    url: str
    model: str
    pool: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    seed: int

    def run(self, stop: Event, on_started: Callable[[], None]) -> Sequence[tuple[int, str]]:
        """Probe until `stop` is set. Returns the number of images and the failure, or an empty text, of each round."""
        on_started()
        data = LabelledImages(self.pool, self.labels, self.class_names)
        rounds = []
        while not stop.is_set():
            failure = ""
            try:
                (target,) = served_targets(self.url, [self.model])
                with closing(target):
                    outcome = measure(Noise((8.0,)), [target], data)
                failure = outcome.targets[0].failure or ""
            except DefensembleError as error:
                failure = f"{type(error).__name__}: {error}"
            rounds.append((len(self.pool), failure))
            stop.wait(1.0)
        return rounds


@dataclass(frozen=True)
class AbortRounds:
    """Callers that abort a few calls in every way, again and again."""

    url: str
    pool: NDArray[np.float32]
    right: Mapping[str, Array]
    seed: int
    made: Any

    def run(self, stop: Event, on_started: Callable[[], None]) -> list[Outcome]:
        """Abort calls until `stop` is set."""
        on_started()
        outcomes: list[Outcome] = []
        counts = _ABORTS[self.url.partition(":")[0]]
        number = 0
        while not stop.is_set():
            aborting = AbortingCallers(self.url, STEADY, self.pool, self.right, counts, 2, self.seed + number, self.made)
            outcomes += aborting.run(stop, lambda: None)
            number += 1
            stop.wait(ABORTS_EVERY_S)
        return outcomes


@dataclass
class SoakRun:
    """The record of a soak between `began` and `ended`, in seconds of `time.monotonic`."""

    began: float
    ended: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    edits: int = 0
    failed_edits: list[str] = field(default_factory=list)
    lost_edits: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    aborts: list[Outcome] = field(default_factory=list)
    probes: list[tuple[int, str]] = field(default_factory=list)
    events: list[ServerEvent] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    machine_info: dict[str, Any] = field(default_factory=dict)

    @property
    def refused_aborts(self) -> int:
        """Number of calls of the aborting callers that failed before they were aborted."""
        return sum(outcome.how == REFUSED for outcome in self.aborts)

    @property
    def plain_calls(self) -> int:
        """Number of calls of the aborting callers that were not aborted, and were answered right."""
        return sum(outcome.how == PLAIN for outcome in self.aborts)


def run_soak(
    members: Sequence[ExportedMember],
    later: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    seconds: float,
    folder: Path,
    *,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> SoakRun:
    """Serve an ensemble of `members`, and call, edit, probe and abort for a time.

    Args:
        members: The members.
        later: More members, and second versions, for the edits.
        pool: The images of the callers.
        seconds: The time.
        folder: An empty folder.
        seed: Seed of edits, batches and moments.
        on_progress: Called with the current step.

    Raises:
        CallersDiedError: A process of callers ended.
        DefensembleError, ServerError, RepositoryError, OSError: The server failed at its start.
    """
    shared_before = list_shared_memory()
    repository = write_ensemble_repository(folder / "repository", members)
    with start_server(repository, check_interval_s=CHECK_INTERVAL_S, supervisor_port=0) as (server, _):
        write_files(repository, planned_files(repository, later, ensemble=None, replace=True))
        with Client(server.http_url, admin_key=server.state.admin_key) as client:
            ensembles = Ensembles(repository, client)
            ensembles.create(STEADY, [f"{member.name}@1" for member in members])
            logits = version_logits(members, later, pool)
            right = expected_outputs(np.stack([logits[member.name, 1] for member in members]))
            with running_callers(_jobs(server, members, pool, right, seed)) as callers:
                run = SoakRun(time.monotonic(), machine_info=machine_info(client.server_metadata()))
                editor = _Editor(ensembles, version_counts(members, later), logits, initial_state(members), seed, run)
                reported = run.began
                while time.monotonic() < run.began + seconds:
                    callers.check()
                    run.samples.append(_sample(server, shared_before))
                    editor.edit_if_due()
                    if time.monotonic() - reported > 60:
                        reported = time.monotonic()
                        on_progress(f"{reported - run.began:.0f} s, {run.edits} edits, {run.samples[-1].pss_bytes / 1e6:.0f} MB")
                    time.sleep(SAMPLE_EVERY_S)
                run.ended = time.monotonic()
                results = callers.stop()
            recorded = [edit.id for edit in ensembles.history()]
            run.lost_edits = sum(edit not in recorded for edit in editor.acknowledged)
        run.events = server.events()
    run.left = find_leftovers(repository, server.state.ports, shared_before)
    run.aborts = [result for result in results if isinstance(result, Outcome)]
    run.probes = [result for result in results if isinstance(result, tuple)]
    calls = [result for result in results if isinstance(result, Call)]
    run.verdict = verify_calls(calls, [state_probabilities(state, logits) for state in editor.states], editor.times, seed=seed, batch=BATCH)
    return run


def _jobs(
    server: Server, members: Sequence[ExportedMember], pool: NDArray[np.float32], right: Mapping[str, Array], seed: int
) -> list[Job[Any]]:
    """Return all callers. Callers of the edited ensemble are numbered on, so that their batches differ."""
    made = CONTEXT.Value("q", 0)
    urls = (server.grpc_url, server.http_url)
    numbers = [tuple(range(CALLERS * index, CALLERS * (index + 1))) for index in range(len(urls))]
    labels = right["probabilities"].argmax(axis=1)[:_PROBE_IMAGES]
    return [
        *(LoopingCallers(url, callers, ENSEMBLE, pool, BATCH, seed) for url, callers in zip(urls, numbers, strict=True)),
        *(AbortRounds(url, pool, right, seed, made) for url in urls),
        ProbeRounds(server.http_url, STEADY, pool[:_PROBE_IMAGES], labels, members[0].class_names, seed),
    ]


class _Editor:
    """Edits the ensemble every few seconds, and records its states and the times of the edits."""

    def __init__(
        self,
        ensembles: Ensembles,
        versions: Mapping[str, int],
        logits: Mapping[tuple[str, int], Array],
        start: State,
        seed: int,
        run: SoakRun,
    ) -> None:
        self.states, self.times = [start], list[tuple[float, float]]()
        self.acknowledged: set[str] = set()
        self._ensembles, self._versions, self._logits, self._seed, self._run = ensembles, versions, logits, seed, run
        self._changes: list[Change] = []
        self._due = run.began

    def edit_if_due(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EDIT_EVERY_S
        if not self._changes:
            drawn = self._seed + len(self.times) + len(self._run.failed_edits)
            self._changes = draw_changes(self._versions, self.states[-1], _CHUNK, drawn, are_distinguishable=self._differ)
        change = self._changes.pop(0)
        begin = time.monotonic()
        try:
            applied = apply_change(change, self._ensembles, ENSEMBLE)
        except (DefensembleError, RepositoryError, OSError) as error:
            self._run.failed_edits.append(f"{change.action}: {type(error).__name__}: {error}")
            self._changes.clear()  # the others were drawn for the state that this one should have led to
            return
        self._run.edits += 1
        self.states.append(change.state)
        self.times.append((begin, time.monotonic()))
        if applied.edit is not None:
            self.acknowledged.add(applied.edit.id)

    def _differ(self, first: State, second: State) -> bool:
        before, after = (state_probabilities(state, self._logits) for state in (first, second))
        return min_difference(before, after, BATCH) > MIN_DIFFERENCE


def _sample(server: Server, shared_before: set[str]) -> Sample:
    pid, guard = server.triton_pid, server.state.pid
    return Sample(
        at=time.monotonic(),
        triton_pid=pid,
        pss_bytes=pss_bytes(pid),
        open_files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=len(os.listdir(f"/proc/{pid}/task")),
        guard_pss_bytes=pss_bytes(guard) + sum(pss_bytes(child) for child in children(guard) if child != pid),
        shared_memory=len(list_shared_memory() - shared_before),
    )
