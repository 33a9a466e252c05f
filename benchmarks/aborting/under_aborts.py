"""The run itself: a server, its patient callers, and those that give up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.giving_up import GivingUp, Outcome
from benchmarks.aborting.killed import Killing
from benchmarks.aborting.patient import Patient, PatientCall
from benchmarks.aborting.plan import scaled
from benchmarks.aborting.watching import Watch, left_behind, shared_memory, watching
from benchmarks.common.answers import Array, right_answers
from benchmarks.common.callers import CONTEXT, Callers, Job, calling
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.provenance import surroundings
from benchmarks.common.servers import ENSEMBLE, started, written
from defensemble import Client
from defensemble_export import ExportedMember
from defensemble_server import ServerEvent

_POLL_S = 0.1
_SAY_S = 15.0


@dataclass(frozen=True)
class Effort:
    """How much is done: `scale` times the counts of `ABORTS`, and no more after `limit_s`.

    `threads` give up calls at a time, by protocol, beside one caller of each protocol that is killed.
    """

    scale: float
    limit_s: float = 780.0
    threads: Mapping[str, int] | None = None
    patient: int = 4
    warm_s: float = 2.0


@dataclass(frozen=True)
class Run:
    """What happened between `began` and `ended`, in seconds of `time.monotonic`."""

    planned: Mapping[str, Mapping[str, int]]
    outcomes: list[Outcome]
    calls: list[PatientCall]
    watch: Watch
    began: float
    ended: float
    left: list[str]
    events: list[ServerEvent]
    """What the server's own guard kept."""
    exit_status: int | None
    """Of the server, where it ended for good."""
    surroundings: dict[str, Any]


def served_under_aborts(
    members: Sequence[ExportedMember],
    logits: Array,
    pool: NDArray[np.float32],
    effort: Effort,
    folder: Path,
    *,
    seed: int,
    on_progress: OnProgress = silent,
) -> Run:
    """Serves an ensemble of `members` and makes all aborts beside patient callers; `logits` (M, P, K) are right for the pool.

    Raises:
        CallersGoneError: A process of callers ended.
        DefensembleError, ServerError, OSError: What went wrong with the server before the first abort.
    """
    repository = written(folder / "repository", members)
    shared_before = shared_memory()
    right = right_answers(logits)
    counts = scaled(effort.scale)
    with started(repository) as (server, _):
        with Client(server.http_url) as client:
            machine = surroundings(client.server_metadata())
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        patients = [
            Patient(url, tuple(range(index * effort.patient, (index + 1) * effort.patient)), ENSEMBLE, pool, right, seed)
            for index, url in enumerate(urls.values())
        ]
        made = CONTEXT.Value("q", 0)
        threads = effort.threads or {"grpc": 12, "http": 6}
        jobs: list[Job[Outcome]] = []
        for protocol, url in urls.items():
            given_up = {kind: count for kind, count in counts[protocol].items() if kind != "kill"}
            jobs.append(GivingUp(url, ENSEMBLE, pool, right, given_up, threads[protocol], seed, made))
            jobs.append(Killing(url, ENSEMBLE, pool, {"kill": counts[protocol]["kill"]}, seed, made))
        with watching(server) as watch, calling(patients) as waiting:
            on_progress(f"{len(urls) * effort.patient} patient callers are at work")
            time.sleep(effort.warm_s)
            with calling(jobs) as aborters:
                began = time.monotonic()
                _await_done(aborters, waiting, watch, began + effort.limit_s, lambda: _progress(made.value, counts, watch, on_progress))
                outcomes = aborters.stop()
            time.sleep(effort.warm_s)
            ended = time.monotonic()
            calls = waiting.stop()
        events = server.events()
        status = server.wait() if watch.gone.is_set() else None
    left = left_behind(repository, server.state.ports, shared_before)
    return Run(counts, outcomes, calls, watch, began, ended, left, events, status, machine)


def _await_done(aborters: Callers[Outcome], waiting: Callers[PatientCall], watch: Watch, deadline: float, tell: Callable[[], None]) -> None:
    """Until all aborts are made, the server is gone for good, or it is time to end."""
    told = time.monotonic()
    while not (aborters.done or watch.gone.is_set() or time.monotonic() > deadline):
        waiting.check()
        time.sleep(_POLL_S)
        if time.monotonic() - told > _SAY_S:
            told = time.monotonic()
            tell()


def _progress(made: int, counts: Mapping[str, Mapping[str, int]], watch: Watch, on_progress: OnProgress) -> None:
    total = sum(count for kinds in counts.values() for count in kinds.values())
    on_progress(f"{made:,} of {total:,} aborts ({100 * made / total:.0f} %), {len(watch.deaths)} deaths")
