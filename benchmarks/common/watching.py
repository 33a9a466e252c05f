"""Observe a server from outside: deaths and restarts, memory and open files, and what it leaves behind."""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.processes import children, process_start_s, pss_bytes
from defensemble_server import Server

_POLL_S = 0.005
_SAMPLE_S = 2.0


@dataclass(frozen=True)
class Sample:
    """Memory and open files of a Triton process at one time."""

    at: float
    pid: int
    pss_bytes: int
    open_files: int


@dataclass(frozen=True)
class Outage:
    """An outage: from the first death to the first correct response to a patient call that was sent after the last death.

    Attributes:
        silent_since: Arrival of the last correct response before the outage; None if there was none. Triton stops responding before its
            process ends, because it first writes its stack to the log.
        began: Time of the first death.
        deaths: Number of deaths.
        ended: Arrival of the first correct response; None if there was none.
    """

    silent_since: float | None
    began: float
    deaths: int
    ended: float | None


@dataclass
class Observations:
    """Observed starts, deaths and samples. Times are in seconds of `time.monotonic`."""

    starts: list[float] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when Triton's guard process has ended."""


def find_outages(deaths: Sequence[float], right: Sequence[tuple[float, float]]) -> list[Outage]:
    """Return the outages that start with `deaths`; `right` are (sent, arrived) of correct responses, `sent` that of the last attempt.

    A response to a call that was sent before a death does not end an outage. Deaths before the end of an outage belong to it.
    """
    outages: list[Outage] = []
    for death in sorted(deaths):
        ended = min((arrived for sent, arrived in right if sent > death), default=None)
        last = outages[-1] if outages else None
        if last is not None and (last.ended is None or last.ended > death):
            outages[-1] = Outage(last.silent_since, last.began, last.deaths + 1, ended)
        else:
            outages.append(Outage(max((arrived for _, arrived in right if arrived <= death), default=None), death, 1, ended))
    return outages


def find_silences(arrivals: Sequence[float], began: float, ended: float, least_s: float) -> list[tuple[float, float]]:
    """Return the intervals (begin, end) of at least `least_s` between `began` and `ended` in which nothing arrived."""
    times = [began, *sorted(arrived for arrived in arrivals if began < arrived < ended), ended]
    return [(before, after) for before, after in itertools.pairwise(times) if after - before >= least_s]


@contextmanager
def observe_server(server: Server) -> Iterator[Observations]:
    """Observe a server's processes from outside until the context ends."""
    watch, stop = Observations(), threading.Event()
    thread = threading.Thread(target=_watch, args=(server.state.pid, watch, stop), name="watch")
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def _watch(guard: int, watch: Observations, stop: threading.Event) -> None:
    while not stop.is_set():
        pid = _find_triton(guard)
        if pid is not None:
            watch.starts.append(time.monotonic())
            _watch_process(pid, watch, stop)
        elif process_start_s(guard) is None:
            watch.gone.set()
            return
        else:
            time.sleep(_POLL_S)


def _watch_process(pid: int, watch: Observations, stop: threading.Event) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        watch.deaths.append(time.monotonic())
        return
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        sampled = 0.0
        while not stop.is_set():
            if poll.poll(100):
                watch.deaths.append(time.monotonic())
                return
            if time.monotonic() - sampled > _SAMPLE_S:
                sampled = time.monotonic()
                try:
                    watch.samples.append(Sample(sampled, pid, pss_bytes(pid), len(os.listdir(f"/proc/{pid}/fd"))))
                except OSError:
                    continue  # it has just died, which the next poll shows
    finally:
        os.close(process)


def _find_triton(guard: int) -> int | None:
    """Return the child of a guard that runs `tritonserver`, or None."""
    try:
        pids = children(guard)
    except OSError:
        return None  # the guard has ended
    return next((pid for pid in pids if _command(pid).partition(" ")[0].endswith("/tritonserver")), None)


def _command(pid: int) -> str:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def list_shared_memory() -> set[str]:
    """Return the entries of /dev/shm, without the semaphores of Python processes, which vanish with these."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def find_leftovers(repository: Path, ports: Sequence[int], shared_before: set[str]) -> list[str]:
    """Return processes that serve a repository, listening ports and new entries of /dev/shm after the server was stopped."""
    return [
        *(f"process {pid}" for pid in _processes() if f"--model-repository={repository} " in _command(pid)),
        *(f"port {port}" for port in ports if _listens(port)),
        *(f"/dev/shm/{name}" for name in sorted(list_shared_memory() - shared_before)),
    ]


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
