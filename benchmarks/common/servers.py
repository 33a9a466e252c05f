"""Start servers of a repository on free ports; measure their start time and memory."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from benchmarks.common.processes import process_start_s, pss_bytes
from defensemble_export import ExportedMember, planned_files, write_files
from defensemble_server import ServeOptions, Server, serve

ENSEMBLE = "ensemble"
_POLL_S = 0.003
_START_S = 60.0


@dataclass(frozen=True)
class Start:
    """Duration of a start, in seconds.

    Attributes:
        serve_s: All of `serve`: reading the repository, starting, and comparing outputs.
        start_s: As `Server` reports it.
        triton_answers_s: From the start of Triton's process (known to 10 ms) to its first response over HTTP, with all models loaded.
    """

    serve_s: float
    start_s: float
    triton_answers_s: float


def write_ensemble_repository(repository: Path, members: Sequence[ExportedMember], **options: Any) -> Path:
    """Write members and an ensemble of them, named `ENSEMBLE`, to a repository. `options` are passed to `planned_files`."""
    write_files(repository, planned_files(repository, members, ensemble=ENSEMBLE, **options))
    return repository


def memory_bytes(server: Server) -> dict[str, int]:
    """Return the PSS in bytes of Triton and of its guard process."""
    return {"triton_pss_bytes": pss_bytes(server.triton_pid), "supervisor_pss_bytes": pss_bytes(server.state.pid)}


@contextmanager
def start_server(repository: Path, **options: Any) -> Iterator[tuple[Server, Start]]:
    """Start a server of a repository on free ports. Yields the server and the duration of its start. `options` are those of `serve`."""
    port = free_port()
    response_times: list[float] = []
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(port, response_times, stop), name="watcher")
    watcher.start()
    try:
        started_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        context = serve(repository, ServeOptions(http_port=port, grpc_port=0, metrics_port=0, drain_s=1, **options))
        server = context.__enter__()
        serve_s = time.clock_gettime(time.CLOCK_BOOTTIME) - started_at
    finally:
        stop.set()
        watcher.join()
    try:
        process_start = process_start_s(server.triton_pid)
        assert process_start is not None, "it has just response_times"
        yield server, Start(serve_s, server.start_s, response_times[0] - process_start)
    finally:
        context.__exit__(None, None, None)


def _watch(port: int, response_times: list[float], stop: threading.Event) -> None:
    with urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=1) as pool:
        while not stop.wait(_POLL_S):
            try:
                if pool.request("GET", "/v2/health/live", retries=False, timeout=2.0).status != 200:
                    continue
            except urllib3.exceptions.HTTPError:  # not listening yet
                continue
            response_times.append(time.clock_gettime(time.CLOCK_BOOTTIME))
            return


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_response(url: str, is_running: Callable[[], bool], ok: Callable[[int], bool]) -> bool:
    """Wait until a server responds to GET with an accepted HTTP status; return False if it ended, or after a minute."""
    deadline = time.monotonic() + _START_S
    with urllib3.PoolManager() as pool:
        while is_running() and time.monotonic() < deadline:
            try:
                # The errors before keep the pool and its connection alive, and Triton does not end properly with an open one.
                if ok(pool.request("GET", url, headers={"Connection": "close"}, retries=False, timeout=1.0).status):
                    return True
            except urllib3.exceptions.HTTPError:
                pass  # it does not listen yet
            time.sleep(_POLL_S)
    return False
