"""The run: a server, its callers, and one edit after another, with an interval without edits around each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array, member_logits
from benchmarks.common.callers import Callers, running_callers
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.processes import pss_bytes
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from benchmarks.editing.answers import Call
from benchmarks.editing.asking import LoopingCallers
from benchmarks.editing.plan import Change, State, WeightedMember, apply_change
from benchmarks.editing.trace import Event, TracedTransport, traced_flushes
from defensemble import Client
from defensemble.ensembles import Applied, Ensembles
from defensemble_export import ExportedMember, planned_files, write_files

PROTOCOLS = ("grpc", "http")
_READINGS = 5


@dataclass(frozen=True)
class Effort:
    """The amount of work.

    Attributes:
        edits: Number of edits.
        timed: Number of edits, from the first, whose calls are is_compared.
        memory_after: The two edits after which memory is is_compared.
        quiet_s: Seconds without edits around each timed edit, and never less than the edit before took.
        later_quiet_s: The same for the other edits.
        warm_s: Seconds before the first interval.
        callers: Number of callers.
        batch: Images per call.
    """

    edits: int
    timed: int
    memory_after: tuple[int, int]
    quiet_s: float
    later_quiet_s: float
    warm_s: float
    callers: int = 8
    batch: int = 16


@dataclass(frozen=True)
class AppliedChange:
    """An applied edit, from `begin` to `end` in seconds of `time.monotonic`."""

    change: Change
    applied: Applied
    begin: float
    end: float


@dataclass(frozen=True)
class Run:
    """The record of a run between `began` and `ended`.

    `memory` is the server's memory in bytes before each edit and after the last. `events` are the flushes and requests of all edits.
    """

    calls: list[Call]
    made: list[AppliedChange]
    memory: list[list[int]]
    began: float
    ended: float
    machine_info: dict[str, Any]
    events: Sequence[Event] = ()


def protocol_of(caller: int) -> str:
    """Return the protocol of a caller: gRPC for even numbers, HTTP for odd ones."""
    return PROTOCOLS[caller % len(PROTOCOLS)]


def initial_state(members: Sequence[ExportedMember]) -> State:
    """Return the ensemble that an export creates."""
    return State(tuple(WeightedMember(member.name) for member in members))


def version_counts(members: Sequence[ExportedMember], later: Sequence[ExportedMember]) -> dict[str, int]:
    """Return the number of versions of each model after `later` are exported, too."""
    names = [member.name for member in (*members, *later)]
    return {name: names.count(name) for name in names}


def version_logits(
    members: Sequence[ExportedMember], later: Sequence[ExportedMember], pool: NDArray[np.float32]
) -> dict[tuple[str, int], Array]:
    """Return the logits (P, K) of each version of each model for the pool, computed by ONNX Runtime in this process."""
    logits_by_version: dict[tuple[str, int], Array] = {}
    all_members = [*members, *later]
    for member, logits in zip(all_members, member_logits(all_members, pool), strict=True):
        version = 1 + sum(name == member.name for name, _ in logits_by_version)
        logits_by_version[member.name, version] = logits
    return logits_by_version


def run_under_load(
    members: Sequence[ExportedMember],
    later: Sequence[ExportedMember],
    pool: NDArray[np.float32],
    changes: Sequence[Change],
    effort: Effort,
    folder: Path,
    *,
    seed: int,
    on_progress: OnProgress = silent,
) -> Run:
    """Serve an ensemble of `members`, export `later`, and apply all `changes` while callers send images of the pool.

    Raises:
        CallersDiedError: The callers cannot call.
        DefensembleError, ServerError, ExportError, OSError: The server or an edit failed.
    """
    repository = write_ensemble_repository(folder / "repository", members)
    with start_server(repository) as (server, _), Client(server.http_url, admin_key=server.state.admin_key) as client:
        # Exported after the start, so that the server has not loaded them yet.
        write_files(repository, planned_files(repository, later, ensemble=None, replace=True))
        events: list[Event] = []
        traced = Client(server.http_url, transport=TracedTransport(client.transport, ENSEMBLE, events.append))
        ensembles = Ensembles(repository, traced)
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        by_protocol: Mapping[str, list[int]] = {protocol: [] for protocol in PROTOCOLS}
        for caller in range(effort.callers):
            by_protocol[protocol_of(caller)].append(caller)
        jobs = [
            LoopingCallers(urls[protocol], tuple(callers), ENSEMBLE, pool, effort.batch, seed)
            for protocol, callers in by_protocol.items()
            if callers
        ]
        with running_callers(jobs) as running, traced_flushes(repository, events.append):
            on_progress(f"{effort.callers} callers are running")
            time.sleep(effort.warm_s)
            began = time.monotonic()
            made: list[AppliedChange] = []
            memory = [_measure_memory(server.triton_pid, effort.quiet_s, running)]
            for change in changes:
                begin = time.monotonic()
                applied = apply_change(change, ensembles, ENSEMBLE)
                made.append(AppliedChange(change, applied, begin, time.monotonic()))
                on_progress(f"edit {len(made)}: {'; '.join(applied.changes)} ({1000 * (made[-1].end - begin):.0f} ms)")
                is_compared = len(made) in effort.memory_after
                quiet_s = effort.quiet_s if is_compared or len(made) <= effort.timed else effort.later_quiet_s
                memory.append(_measure_memory(server.triton_pid, max(quiet_s, made[-1].end - begin), running))
            ended = time.monotonic()
            calls = running.stop()
        return Run(calls, made, memory, began, ended, machine_info(client.server_metadata()), events)


def _measure_memory(pid: int, seconds: float, callers: Callers[Call]) -> list[int]:
    """Wait, and return readings of the server's memory."""
    readings = []
    for _ in range(_READINGS):
        time.sleep(seconds / _READINGS)
        callers.check()
        readings.append(pss_bytes(pid))
    return readings
