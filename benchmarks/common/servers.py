"""Servers of a repository on free ports: how long they take to start, and what they take of the machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from benchmarks.common.processes import pss_bytes, start_s
from defensemble_export import ExportedMember, repository_plan, write_files
from defensemble_server import ServeOptions, Server, serve

ENSEMBLE = "ensemble"
_POLL_S = 0.003


@dataclass(frozen=True)
class Start:
    """How long a start took, in seconds.

    `serve_s`: all of `serve`, that is reading the repository, starting, and comparing answers; `start_s`: what `Server` says of it;
    `triton_answers_s`: from the birth of Triton's process (known to 10 ms) to its first answer over HTTP, with all models loaded.
    """

    serve_s: float
    start_s: float
    triton_answers_s: float


def written(repository: Path, members: Sequence[ExportedMember], **options: Any) -> Path:
    """Write members and an ensemble of them, named `ENSEMBLE`, into a repository; `options` are those of `repository_plan`."""
    write_files(repository, repository_plan(repository, members, ensemble=ENSEMBLE, **options))
    return repository


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
        born = start_s(server.triton_pid)
        assert born is not None, "it has just answered"
        yield server, Start(took, server.start_s, answered[0] - born)
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
