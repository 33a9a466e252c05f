"""The run itself: a server, its callers, and one edit after another, with a while without edits around each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array, logits_of_members
from benchmarks.common.callers import Callers, calling
from benchmarks.common.command_line import OnProgress, silent
from benchmarks.common.processes import pss_bytes
from benchmarks.common.provenance import surroundings
from benchmarks.common.servers import ENSEMBLE, started, written
from benchmarks.editing.answers import Call
from benchmarks.editing.asking import Asking
from benchmarks.editing.plan import Ballot, Change, State, make
from defensemble import Client
from defensemble.ensembles import Applied, Ensembles
from defensemble_export import ExportedMember, repository_plan, write_files

PROTOCOLS = ("grpc", "http")
_READINGS = 5


@dataclass(frozen=True)
class Effort:
    """How much is done: `edits`, of which the first `timed` have a while of `quiet_s` before and after, the others of `later_quiet_s`.

    No such while is shorter than the edit before it. Memory is compared between the two whiles that follow the edits `memory_after`.
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
class Made:
    """An edit that was made, from `begin` to `end` in seconds of `time.monotonic`."""

    change: Change
    applied: Applied
    begin: float
    end: float


@dataclass(frozen=True)
class Run:
    """What happened between `began` and `ended`; `memory` are the server's bytes in the while before each edit, and after the last."""

    calls: list[Call]
    made: list[Made]
    memory: list[list[int]]
    began: float
    ended: float
    surroundings: dict[str, Any]


def protocol_of(caller: int) -> str:
    """Callers with even numbers ask over gRPC, the others over HTTP."""
    return PROTOCOLS[caller % len(PROTOCOLS)]


def starting_state(members: Sequence[ExportedMember]) -> State:
    """The ensemble that an export makes."""
    return State(tuple(Ballot(member.name) for member in members))


def versions_of(members: Sequence[ExportedMember], later: Sequence[ExportedMember]) -> dict[str, int]:
    """How many versions each model has, once `later` are exported beside `members`."""
    names = [member.name for member in (*members, *later)]
    return {name: names.count(name) for name in names}


def logits_of(
    members: Sequence[ExportedMember], later: Sequence[ExportedMember], pool: NDArray[np.float32]
) -> dict[tuple[str, int], Array]:
    """What each version of each model says by itself about the pool, by ONNX Runtime in this process: (P, K)."""
    found: dict[tuple[str, int], Array] = {}
    every = [*members, *later]
    for member, logits in zip(every, logits_of_members(every, pool), strict=True):
        version = 1 + sum(name == member.name for name, _ in found)
        found[member.name, version] = logits
    return found


def edited_under_load(
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
    """Serves an ensemble of `members`, exports `later` beside them, and makes all `changes` while callers ask about the pool.

    Raises:
        CallersGoneError: The callers cannot ask.
        DefensembleError, ServerError, ExportError, OSError: What went wrong with the server or with an edit.
    """
    repository = written(folder / "repository", members)
    with started(repository) as (server, _), Client(server.http_url, admin_key=server.state.admin_key) as client:
        # Only now, so that the server does not have them yet.
        write_files(repository, repository_plan(repository, later, ensemble=None, replace=True))
        ensembles = Ensembles(repository, client)
        urls = {"grpc": server.grpc_url, "http": server.http_url}
        by_protocol: Mapping[str, list[int]] = {protocol: [] for protocol in PROTOCOLS}
        for caller in range(effort.callers):
            by_protocol[protocol_of(caller)].append(caller)
        askings = [
            Asking(urls[protocol], tuple(callers), ENSEMBLE, pool, effort.batch, seed)
            for protocol, callers in by_protocol.items()
            if callers
        ]
        with calling(askings) as callers_at_work:
            on_progress(f"{effort.callers} callers are at work")
            time.sleep(effort.warm_s)
            began = time.monotonic()
            made: list[Made] = []
            memory = [_quiet(server.triton_pid, effort.quiet_s, callers_at_work)]
            for change in changes:
                begin = time.monotonic()
                applied = make(change, ensembles, ENSEMBLE)
                made.append(Made(change, applied, begin, time.monotonic()))
                on_progress(f"edit {len(made)}: {'; '.join(applied.changes)} ({1000 * (made[-1].end - begin):.0f} ms)")
                compared = len(made) in effort.memory_after
                quiet_s = effort.quiet_s if compared or len(made) <= effort.timed else effort.later_quiet_s
                memory.append(_quiet(server.triton_pid, max(quiet_s, made[-1].end - begin), callers_at_work))
            ended = time.monotonic()
            calls = callers_at_work.stop()
        return Run(calls, made, memory, began, ended, surroundings(client.server_metadata()))


def _quiet(pid: int, seconds: float, callers: Callers[Call]) -> list[int]:
    """Waits; the server's memory meanwhile."""
    readings = []
    for _ in range(_READINGS):
        time.sleep(seconds / _READINGS)
        callers.check()
        readings.append(pss_bytes(pid))
    return readings
