"""What a server takes of the machine: memory, and time to start."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import urllib3

from defensemble_server import ServeOptions, Server, serve
from defensemble_server.process.state import process_start

CORES = 2
_POLL_S = 0.003


def pin() -> None:
    """Keeps this process, and what it starts, on two cores: goals, pools and graphs of two threads are made for two.

    Raises:
        click.ClickException: it may use fewer.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < CORES:
        raise click.ClickException(f"this compares forms on {CORES} cores, and may use {len(usable)} here: allow it more")
    os.sched_setaffinity(0, usable[:CORES])


@dataclass(frozen=True)
class Start:
    """How long a start took, in seconds.

    `serve_s`: all of `serve`, that is reading the repository, starting, and comparing answers; `start_s`: what `Server` says of it;
    `triton_answers_s`: from the birth of Triton's process (known to 10 ms) to its first answer over HTTP, with all models loaded.
    """

    serve_s: float
    start_s: float
    triton_answers_s: float


def pss_bytes(pid: int) -> int:
    """The proportional set size of a process: its own memory, and its share of what it shares. Source: proc(5), smaps_rollup.

    Raises:
        OSError: There is no such process, or it is someone else's.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/smaps_rollup has no line `Pss:`")


def processor_seconds(pid: int) -> float:
    """The processor time that a process has taken, all threads together, to 10 ms. Source: proc(5), stat.

    Raises:
        OSError: There is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(server: Server) -> dict[str, int]:
    """PSS in bytes of Triton and of the supervisor that cleans up after it."""
    return {"triton_pss_bytes": pss_bytes(server.triton_pid), "supervisor_pss_bytes": pss_bytes(server.state.pid)}


@contextmanager
def started(repository: Path) -> Iterator[tuple[Server, Start]]:
    """A server of a repository on free ports, and how long it took to start."""
    port = _free_port()
    answered: list[float] = []
    given_up = threading.Event()
    watcher = threading.Thread(target=_watch, args=(port, answered, given_up), name="watcher")
    watcher.start()
    try:
        begin = time.clock_gettime(time.CLOCK_BOOTTIME)
        context = serve(repository, ServeOptions(http_port=port, grpc_port=0, metrics_port=0, drain_s=1))
        server = context.__enter__()
        took = time.clock_gettime(time.CLOCK_BOOTTIME) - begin
    finally:
        given_up.set()
        watcher.join()
    try:
        ticks = process_start(server.triton_pid)
        assert ticks is not None, "it has just answered"
        yield server, Start(took, server.start_s, answered[0] - ticks / os.sysconf("SC_CLK_TCK"))
    finally:
        context.__exit__(None, None, None)


def _watch(port: int, answered: list[float], given_up: threading.Event) -> None:
    with urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1) as pool:
        while not given_up.wait(_POLL_S):
            try:
                if pool.request("GET", "/v2/health/live", retries=False, timeout=2.0).status != 200:
                    continue
            except urllib3.exceptions.HTTPError:  # it does not listen yet
                continue
            answered.append(time.clock_gettime(time.CLOCK_BOOTTIME))
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
