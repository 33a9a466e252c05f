"""Run a fault: stage, load, injection, recovery; in mounts of its own where it needs them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.callers import CONTEXT, running_callers
from benchmarks.common.watching import Sample, find_leftovers, list_shared_memory, observe_server
from benchmarks.faulting.callers import Call
from benchmarks.faulting.fault import Effort, Fault, Injection
from benchmarks.faulting.stage import staged
from defensemble import Client, ServerMetadata
from defensemble_export import ExportedMember
from defensemble_server import ServerEvent

SHM_BYTES, DISK_BYTES = 1 << 20, 64 << 20
_CLONE_NEWNS = 0x00020000
_CHILD_S = 300.0


class NotRunError(Exception):
    """A fault cannot be injected on this machine."""


class FaultRunError(Exception):
    """The process that ran a fault ended without a result."""


@dataclass(frozen=True)
class FaultRun:
    """The record of a fault. Times are in seconds of `time.monotonic`; those of `events` are in seconds since the epoch.

    Attributes:
        injection: What was done.
        calls: All calls.
        deaths: When Triton's process of the first server ended.
        samples: Its memory and open files.
        events: What the guards recorded.
        epoch: The time of `time.time` at 0 of `time.monotonic`.
        not_recovered: What was still wrong when the patience ended, or None.
        lost_edits: Number of acknowledged edits that are not in the history.
        later_edit: What is wrong with the edit after the fault, or None.
        left: What the servers left behind.
        stopped: When the callers stopped.
        server: Name and version of the server.
    """

    injection: Injection
    calls: list[Call]
    deaths: list[float]
    samples: list[Sample]
    events: list[ServerEvent]
    epoch: float
    not_recovered: str | None
    lost_edits: int
    later_edit: str | None
    left: list[str]
    stopped: float
    server: ServerMetadata


@dataclass(frozen=True)
class Cast:
    """What every fault is injected into: members, whose first is trapped, their logits (M, P, K) for the pool, and the pool."""

    members: Sequence[ExportedMember]
    logits: Array
    pool: NDArray[np.float32]
    seed: int = 0


def run_fault(fault: Fault, cast: Cast, effort: Effort) -> FaultRun:
    """Inject a fault under load.

    Raises:
        NotRunError: It needs mounts, which this user may not make.
        FaultRunError: Its process ended early.
        CallersDiedError, DefensembleError, ServerError, RepositoryError, OSError: The service failed before the fault.
    """
    with tempfile.TemporaryDirectory(prefix="defensemble-benchmark-") as folder:
        if not fault.needs_mounts:
            return _run(fault, cast, effort, Path(folder))
        own_end, other_end = CONTEXT.Pipe(duplex=False)
        child = CONTEXT.Process(target=_run_with_mounts, args=(fault, cast, effort, Path(folder), other_end), name=f"fault-{fault.name}")
        child.start()
        other_end.close()
        try:
            outcome = own_end.recv() if own_end.poll(_CHILD_S) else None
        except EOFError:
            outcome = None
        finally:
            own_end.close()
            child.join(timeout=_CHILD_S if outcome is not None else 0)
            if child.is_alive():
                child.kill()
                child.join()
        if outcome is None:
            raise FaultRunError(f"the process of the fault {fault.name} ended with status {child.exitcode} and without a result")
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, FaultRun)
        return outcome


def _run_with_mounts(fault: Fault, cast: Cast, effort: Effort, folder: Path, pipe: Connection) -> None:
    """Run a fault in a mount namespace of its own, whose mounts vanish with this process."""
    outcome: FaultRun | Exception
    try:
        _leave_namespace()
        if fault.small_shm:
            _mount(Path("/dev/shm"), SHM_BYTES)
        if fault.small_disk:
            (folder / "disk").mkdir()
            _mount(folder / "disk", DISK_BYTES)
            os.environ["XDG_STATE_HOME"] = str(folder / "disk" / "state")
        outcome = _run(fault, cast, effort, folder / "disk" if fault.small_disk else folder)
    except Exception as error:  # every error of this process is raised in the other one
        outcome = error
    pipe.send(outcome)
    pipe.close()


def _leave_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        number = ctypes.get_errno()
        raise NotRunError(f"this user may not make mounts (root may): unshare: {os.strerror(number)}")
    _run_mount("--make-rprivate", "/")


def _mount(place: Path, size_bytes: int) -> None:
    _run_mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place))


def _run_mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotRunError(f"this user may not make mounts (root may): {done.stderr.strip()}")


def _run(fault: Fault, cast: Cast, effort: Effort, folder: Path) -> FaultRun:
    shared_before = list_shared_memory()
    repository = folder / "repository"
    epoch = time.time() - time.monotonic()
    with staged(cast.members, cast.logits, cast.pool, repository, effort, replicas=fault.replicas, seed=cast.seed) as stage:
        acknowledged = stage.history()
        with Client(stage.server.http_url) as client:
            server = client.server_metadata()
        with observe_server(stage.server) as watch, running_callers(stage.jobs()) as callers:
            time.sleep(effort.warm_s)
            injection = fault.inject(stage)
            not_recovered = stage.await_right()
            time.sleep(effort.settle_s)
            stopped = time.monotonic()
            calls = callers.stop()
        lost = sum(edit not in stage.history() for edit in acknowledged)
        later_edit = stage.edit_later()
        events = [event for server in stage.servers for event in server.events()]
        ports = [port for server in stage.servers for port in server.state.ports]
    left = find_leftovers(repository, ports, shared_before)
    return FaultRun(injection, calls, watch.deaths, watch.samples, events, epoch, not_recovered, lost, later_edit, left, stopped, server)
