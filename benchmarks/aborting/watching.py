"""What becomes of a server meanwhile: when it dies, when it answers again, and what it takes and leaves of the machine."""

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

from benchmarks.common.processes import pss_bytes, start_s
from defensemble_server import Server

_POLL_S = 0.005
_SAMPLE_S = 2.0


@dataclass(frozen=True)
class Sample:
    """What one process of Triton holds at a time."""

    at: float
    pid: int
    pss_bytes: int
    open_files: int


@dataclass(frozen=True)
class Outage:
    """From the first death until a patient call that was sent after the last one was answered rightly; `ended` is None if none was.

    `silent_since` is when the last right answer before it arrived: Triton stops answering some time before its process ends, since it
    writes its stack to the log meanwhile. It is None where there was none.
    """

    silent_since: float | None
    began: float
    deaths: int
    ended: float | None


@dataclass
class Watch:
    """What was seen; times in seconds of `time.monotonic`."""

    starts: list[float] = field(default_factory=list)
    deaths: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when the process that guards Triton has ended."""


def outages(deaths: Sequence[float], right: Sequence[tuple[float, float]]) -> list[Outage]:
    """The outages that begin with `deaths`; `right` are (sent, arrived) of right answers, `sent` that of the last attempt.

    An answer that was sent before a death does not end an outage. Deaths before the end of one belong to it.
    """
    found: list[Outage] = []
    for death in sorted(deaths):
        ended = min((arrived for sent, arrived in right if sent > death), default=None)
        last = found[-1] if found else None
        if last is not None and (last.ended is None or last.ended > death):
            found[-1] = Outage(last.silent_since, last.began, last.deaths + 1, ended)
        else:
            found.append(Outage(max((arrived for _, arrived in right if arrived <= death), default=None), death, 1, ended))
    return found


def silences(arrivals: Sequence[float], began: float, ended: float, least_s: float) -> list[tuple[float, float]]:
    """The times (begin, end) between `began` and `ended` of at least `least_s` in which nothing arrived."""
    times = [began, *sorted(arrived for arrived in arrivals if began < arrived < ended), ended]
    return [(before, after) for before, after in itertools.pairwise(times) if after - before >= least_s]


@contextmanager
def watching(server: Server) -> Iterator[Watch]:
    """Watch a server's processes from outside, until the context ends."""
    watch, stop = Watch(), threading.Event()
    thread = threading.Thread(target=_watch, args=(server.state.pid, watch, stop), name="watch")
    thread.start()
    try:
        yield watch
    finally:
        stop.set()
        thread.join()


def _watch(guard: int, watch: Watch, stop: threading.Event) -> None:
    while not stop.is_set():
        pid = _triton_of(guard)
        if pid is not None:
            watch.starts.append(time.monotonic())
            _watch_one(pid, watch, stop)
        elif start_s(guard) is None:
            watch.gone.set()
            return
        else:
            time.sleep(_POLL_S)


def _watch_one(pid: int, watch: Watch, stop: threading.Event) -> None:
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
                    continue  # it has just died, which the next poll says
    finally:
        os.close(process)


def _triton_of(guard: int) -> int | None:
    """The child of a guard that runs `tritonserver`, if there is one."""
    try:
        children = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    except OSError:
        return None  # the guard has ended
    return next((int(child) for child in children if _command(int(child)).partition(" ")[0].endswith("/tritonserver")), None)


def _command(pid: int) -> str:
    """The command line of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def shared_memory() -> set[str]:
    """The entries of /dev/shm, without the semaphores of Python's processes, which go when those end."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}


def left_behind(repository: Path, ports: Sequence[int], shared_before: set[str]) -> list[str]:
    """Processes that serve a repository, ports that still listen and new entries of /dev/shm, after the server was stopped."""
    return [
        *(f"process {pid}" for pid in _processes() if f"--model-repository={repository} " in _command(pid)),
        *(f"port {port}" for port in ports if _listens(port)),
        *(f"/dev/shm/{name}" for name in sorted(shared_memory() - shared_before)),
    ]


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
