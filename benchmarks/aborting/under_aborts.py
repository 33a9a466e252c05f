"""The run: a server, its patient callers, and the aborting callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.aborting.giving_up import AbortingCallers, Outcome
from benchmarks.aborting.killed import KilledCallers
from benchmarks.aborting.patient import PatientCall, PatientCallers
from benchmarks.aborting.plan import scale_counts
from benchmarks.common.answers import Array, expected_outputs
from benchmarks.common.callers import CONTEXT, Callers, Job, running_callers
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from benchmarks.common.watching import Observations, find_leftovers, list_shared_memory, observe_server
from defensemble import Client
from defensemble_export import ExportedMember
from defensemble_server import ServerEvent

_POLL_S = 0.1
_REPORT_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Effort:
    """The amount of work: `scale` times the counts of `ABORTS`, at most `limit_s` seconds.

    `threads` is the number of callers that abort calls concurrently, by protocol, in addition to one killed caller per protocol.
    """

    scale: float
    limit_s: float = 780.0
    threads: Mapping[str, int] | None = None
    patient: int = 4
    warm_s: float = 2.0


@dataclass(frozen=True)
class Run:
    """The record of a run between `began` and `ended`, in seconds of `time.monotonic`."""

    planned: Mapping[str, Mapping[str, int]]
    outcomes: list[Outcome]
    calls: list[PatientCall]
    watch: Observations
    began: float
    ended: float
    left: list[str]
    events: list[ServerEvent]
    """The events that the server's guard recorded."""
    exit_status: int | None
    """Exit status of the server, if it ended permanently."""
    machine_info: dict[str, Any]


def run_under_aborts(
    members: Sequence[ExportedMember],
    logits: Array,
    pool: NDArray[np.float32],
    effort: Effort,
    folder: Path,
    *,
    seed: int,
    on_progress: OnProgress = silent,
) -> Run:
    """Serve an ensemble of `members`, and make all aborts while patient callers call it. `logits` (M, P, K) are those of the pool.

    Raises:
        CallersDiedError: A process of callers ended.
        DefensembleError, ServerError, OSError: The server failed before the first abort.
    """
    repository = write_ensemble_repository(folder / "repository", members)
    shared_before = list_shared_memory()
    right = expected_outputs(logits)
    counts = scale_counts(effort.scale)
    with start_server(repository) as (server, _):
        with Client(server.http_url) as client:
            machine = machine_info(client.server_metadata())
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        patients = [
            PatientCallers(url, tuple(range(index * effort.patient, (index + 1) * effort.patient)), ENSEMBLE, pool, right, seed)
            for index, url in enumerate(urls.values())
        ]
        made = CONTEXT.Value("q", 0)
        threads = effort.threads or {"grpc": 12, "http": 6}
        jobs: list[Job[Outcome]] = []
        for protocol, url in urls.items():
            aborts = {kind: count for kind, count in counts[protocol].items() if kind != "kill"}
            jobs.append(AbortingCallers(url, ENSEMBLE, pool, right, aborts, threads[protocol], seed, made))
            jobs.append(KilledCallers(url, ENSEMBLE, pool, {"kill": counts[protocol]["kill"]}, seed, made))
        with observe_server(server) as watch, running_callers(patients) as waiting:
            on_progress(f"{len(urls) * effort.patient} patient callers are running")
            time.sleep(effort.warm_s)
            with running_callers(jobs) as aborters:
                began = time.monotonic()
                _await_done(aborters, waiting, watch, began + effort.limit_s, lambda: _progress(made.value, counts, watch, on_progress))
                outcomes = aborters.stop()
            time.sleep(effort.warm_s)
            ended = time.monotonic()
            calls = waiting.stop()
        events = server.events()
        status = server.wait() if watch.gone.is_set() else None
    left = find_leftovers(repository, server.state.ports, shared_before)
    return Run(counts, outcomes, calls, watch, began, ended, left, events, status, machine)


def _await_done(
    aborters: Callers[Outcome], waiting: Callers[PatientCall], watch: Observations, deadline: float, report: Callable[[], None]
) -> None:
    """Wait until all aborts are made, the server has ended permanently, or the deadline has passed."""
    reported = time.monotonic()
    while not (aborters.done or watch.gone.is_set() or time.monotonic() > deadline):
        waiting.check()
        time.sleep(_POLL_S)
        if time.monotonic() - reported > _REPORT_INTERVAL_S:
            reported = time.monotonic()
            report()


def _progress(made: int, counts: Mapping[str, Mapping[str, int]], watch: Observations, on_progress: OnProgress) -> None:
    total = sum(count for kinds in counts.values() for count in kinds.values())
    on_progress(f"{made:,} of {total:,} aborts ({100 * made / total:.0f} %), {len(watch.deaths)} deaths")
