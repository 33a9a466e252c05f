"""A Triton that writes its own trace, and the calls of a trace."""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.servers import start_server, wait_for_response
from defensemble_repository.names import AVERAGING_NAME

_STOP_S = 20.0


class TraceError(Exception):
    """Triton did not start, stopped answering, or wrote no trace."""


@dataclass(frozen=True)
class TracedServer:
    """The URLs of a running Triton."""

    http_url: str
    grpc_url: str


@dataclass
class Call:
    """A traced request: the times of its events in ns of `time.monotonic_ns`, and the requests that an ensemble made of it."""

    model: str = ""
    parent: int = 0
    times: dict[str, int] = field(default_factory=dict)
    steps: list[Call] = field(default_factory=list)

    @property
    def members(self) -> list[Call]:
        """The requests of members: the call itself, if it is not one of an ensemble."""
        return [step for step in self.steps if not AVERAGING_NAME.fullmatch(step.model)] if self.steps else [self]

    @property
    def averages(self) -> list[Call]:
        """The requests of averaging models."""
        return [step for step in self.steps if AVERAGING_NAME.fullmatch(step.model)]


@contextmanager
def traced_server(repository: Path, trace: Path, rate: int) -> Iterator[TracedServer]:
    """Run Triton on a repository as `serve` does, with the trace of every `rate`-th request, which it writes to `trace` when it ends.

    Callers must close their connections before: with open ones, Triton ends without a trace.

    Raises:
        TraceError: Triton did not start, or did not end properly.
        ServerError, RepositoryError: The repository cannot be served.
    """
    with start_server(repository) as (server, _):
        process_files = Path(f"/proc/{server.triton_pid}")
        command = (process_files / "cmdline").read_text().split("\0")[:-1]
        environment = dict(line.split("=", 1) for line in (process_files / "environ").read_text().split("\0") if line)
    settings = ("mode=triton", f"triton,file={trace}", f"rate={rate}", "level=TIMESTAMPS")
    command = [part for part in command if not part.startswith("--exit-timeout-secs=")]  # too short to unload the models on a busy machine
    command += [f"--exit-timeout-secs={_STOP_S:g}", *(f"--trace-config={setting}" for setting in settings)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if not wait_for_response(f"{server.http_url}/v2/health/ready", lambda: process.poll() is None, ok=lambda status: status == 200):
            raise TraceError(f"Triton did not get ready (exit status {process.poll()})")
        yield TracedServer(server.http_url, server.grpc_url)
        process.terminate()
        if process.wait(2 * _STOP_S) != 0:
            raise TraceError(f"Triton ended with exit status {process.returncode}, so that its trace is incomplete")
    except subprocess.TimeoutExpired as error:
        raise TraceError(f"Triton did not end within {2 * _STOP_S:g} s, so that its trace is incomplete") from error
    finally:
        process.kill()
        process.wait()


def read_calls(trace: Path) -> list[Call]:
    """Return the traced calls of clients, with their steps.

    Raises:
        TraceError: The file is missing or not a trace.
    """
    try:
        entries = json.loads(trace.read_bytes())
    except (OSError, ValueError) as error:
        raise TraceError(f"Triton wrote no trace to {trace}: {error}") from error
    return calls_from_entries(entries)


def calls_from_entries(entries: Sequence[Mapping[str, Any]]) -> list[Call]:
    """Return the traced calls of clients from the entries of a trace file, of which several belong to each request."""
    calls: defaultdict[int, Call] = defaultdict(Call)
    for entry in entries:
        call = calls[entry["id"]]
        call.model = entry.get("model_name", call.model)
        call.parent = entry.get("parent_id", call.parent)
        call.times |= {event["name"]: event["ns"] for event in entry.get("timestamps", [])}
    for call in list(calls.values()):
        if call.parent:
            calls[call.parent].steps.append(call)
    return [call for call in calls.values() if not call.parent]
