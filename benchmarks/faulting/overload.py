"""Overload a server, directly and through the proxy that ships: goodput, latency, memory, and seconds to recover."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.common.command_line import CORES, OnProgress, silent
from benchmarks.common.nginx import Nginx, start_nginx
from benchmarks.common.processes import pss_bytes
from benchmarks.common.provenance import machine_info
from benchmarks.common.servers import start_server
from benchmarks.faulting.overload_figures import goodput_ratio
from defensemble import Client, RetryPolicy, ServiceError
from defensemble.load import LoadSettings, Slo, Step, run_load
from defensemble_server import Server

PROTOCOLS: tuple[Literal["http", "grpc"], ...] = ("http", "grpc")
_QUANTILE = 0.99
_PROBE_PAUSE_S = 0.02
_CALM = 10  # probes in a row within the objective end the time to recover
_GIVE_UP_S = 60.0  # without them
_SAMPLE_S = 0.05
_TRIES = 3
_CALLERS_PER_CORE = 4


@dataclass(frozen=True)
class Overload:
    """How much load, and for how long.

    Attributes:
        objective_ms: Latency objective: an answer within it counts as goodput.
        batch_size: Images per call.
        factors: Rates, as multiples of the capacity.
        step_s: Seconds of each rate.
        protocol: The callers' protocol.
        paths: Ways to the server, which are loaded one after the other.
        seed: Seed of arrivals and images.

    Example:
        >>> measure_overload(server, Path("nginx"), Overload(objective_ms=500))
    """

    objective_ms: float = 1000.0
    batch_size: int = 8
    factors: Sequence[float] = (0.5, 0.8, 1.0, 2.0, 3.0)
    step_s: float = 6.0
    protocol: Literal["http", "grpc"] = "http"
    paths: Sequence[Literal["proxy", "direct"]] = ("proxy", "direct")
    seed: int = 0

    def url_of(self, server: Server | Nginx) -> str:
        """Return the URL of a server or of the proxy for the protocol."""
        return server.http_url if self.protocol == "http" else server.grpc_url


def measure_overload(server: Server, folder: Path, overload: Overload, *, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Load a server beyond its capacity, through the proxy and directly, and return the result as JSON.

    The capacity is the throughput of a closed loop of four callers for each core. The proxy's limit of requests in flight is half of what
    the server computes within the objective.

    Args:
        server: The server; nothing else may call it meanwhile.
        folder: A folder for the files of nginx.
        overload: The load.
        on_progress: Called with the current step.

    Raises:
        DefensembleError: The server cannot be reached before the first step, or a process of the load generator ended.
        NginxError: nginx is not installed, or did not start.
    """
    settings = LoadSettings(
        callers=(_CALLERS_PER_CORE * CORES,),
        batch_sizes=overload.batch_size,
        step_s=overload.step_s,
        warm_up_s=0.5,
        slo=Slo(_QUANTILE, overload.objective_ms),
        timeout_s=10.0,
        seed=overload.seed,
    )
    on_progress("measuring the capacity")
    capacity_per_s = run_load(overload.url_of(server), settings).targets[0].steps[0].requests_per_s
    in_flight = limit_from_capacity(capacity_per_s, overload.objective_ms)
    on_progress(f"capacity {capacity_per_s:.1f} calls/s; the proxy allows {in_flight} in flight")
    # All callers of this machine have one address.
    changes = {
        "max_conns=16": f"max_conns={in_flight}",
        "rate=1000r/s": "rate=100000r/s",
        "burst=1000": "burst=100000",
        "limit_conn defensemble_http_client 64": "limit_conn defensemble_http_client 512",
        "limit_conn defensemble_grpc_client 12": "limit_conn defensemble_grpc_client 512",
    }
    result: dict[str, Any] = {**dataclasses.asdict(overload), "capacity_per_s": capacity_per_s, "in_flight": in_flight}
    with start_nginx(folder, http_port=server.state.http_port, grpc_port=server.state.grpc_port, changes=changes) as nginx:
        for name in overload.paths:
            url = overload.url_of(nginx if name == "proxy" else server)
            rows = []
            for factor in overload.factors:
                on_progress(f"{name}: {factor:g} times the capacity")
                open_loop = dataclasses.replace(settings, callers=(), rates=(factor * capacity_per_s,))
                rows.append(_run_step(server, url, factor, open_loop, overload.objective_ms))
            result[name] = {"rows": rows, "goodput_ratio": goodput_ratio(rows)}
    return result


def run_rounds(
    repository: Path, folder: Path, overload: Overload, rounds: int, *, on_progress: OnProgress = silent
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Overload a new server in each round over each protocol. Returns the records of all, and the description of the machine.

    Args:
        repository: The served repository.
        folder: A folder for the files of nginx.
        overload: The load; its protocol and seed are those of the first round.
        rounds: Number of rounds.
        on_progress: Called with the current step.

    Raises:
        DefensembleError, ServerError, NginxError: As `measure_overload`; also if a server does not start.
    """
    records: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    for number in range(rounds):
        for protocol in PROTOCOLS:
            on_progress(f"round {number + 1} of {rounds}, {protocol}")
            load = dataclasses.replace(overload, protocol=protocol, seed=overload.seed + number)
            with start_server(repository) as (server, _):
                record = measure_overload(server, folder / f"{protocol}{number}", load, on_progress=on_progress)
                with Client(server.http_url) as client:
                    machine = machine_info(client.server_metadata())
            records.append({"round": number, **record})
    return records, machine


def limit_from_capacity(capacity_per_s: float, objective_ms: float) -> int:
    """Return how many requests may be in flight: half of those that are computed within the objective, and at least four per core."""
    return max(_CALLERS_PER_CORE * CORES, round(capacity_per_s * objective_ms / 1000 / 2))


@dataclass
class _Observed:
    """What was seen during and after a step: largest memory, and for each probe its end and whether it met the objective."""

    peak_pss_bytes: int = 0
    probes: list[tuple[float, bool]] = field(default_factory=list)


def _run_step(server: Server, url: str, factor: float, settings: LoadSettings, objective_ms: float) -> dict[str, Any]:
    before, events_before = _memory_bytes(server), len(server.events())
    with _observe(server, url, objective_ms) as observed:
        for _ in range(_TRIES):  # another process may take the generator's processor for a moment
            step = run_load(url, settings).targets[0].steps[0]
            if step.valid:
                break
        ended = datetime.fromisoformat(step.began_at).timestamp() + settings.step_s
        deadline = ended + _GIVE_UP_S
        while (recovered := _recovery_s(observed.probes, ended)) is None and time.time() < deadline:
            time.sleep(_PROBE_PAUSE_S)
    return {
        **_figures(factor, step),
        "recovery_s": recovered,
        "pss_before_bytes": before,
        "pss_peak_bytes": observed.peak_pss_bytes,
        "pss_after_bytes": _memory_bytes(server),
        "deaths": sum(event.is_fault for event in server.events()[events_before:]),
    }


def _figures(factor: float, step: Step) -> dict[str, Any]:
    return {
        "factor": factor,
        "rate_per_s": step.rate_per_s,
        "sent": step.sent,
        "unsent": step.unsent,
        "answered": step.answered,
        "failures": step.failures,
        "goodput_per_s": step.goodput_per_s,
        "attainment": step.attainment,
        "p50_ms": None if step.latency_ms is None else step.latency_ms.p50,
        "p99_ms": None if step.latency_ms is None else step.latency_ms.p99,
        "problem": step.problem,
    }


def _recovery_s(probes: Sequence[tuple[float, bool]], ended: float) -> float | None:
    """Return the seconds from the end of the load until the probes met the objective, ten times in a row; None if they do not yet."""
    start, in_a_row = ended, 0
    for at, is_good in probes:
        if at < ended:
            continue
        if not is_good:
            start, in_a_row = at, 0
            continue
        in_a_row += 1
        if in_a_row == _CALM:
            return start - ended
    return None


@contextmanager
def _observe(server: Server, url: str, objective_ms: float) -> Iterator[_Observed]:
    """Sample the server's memory and call it again and again, one image at a time, until the end of the block."""
    observed = _Observed()
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_S):
            observed.peak_pss_bytes = max(observed.peak_pss_bytes, _memory_bytes(server) or 0)

    def probe() -> None:
        with Client(url, retry=RetryPolicy(max_retries=0)) as client:
            image = np.zeros((1, *client.describe().image_shape), np.float32)
            while not stop.wait(_PROBE_PAUSE_S):
                began = time.time()
                try:
                    client.predict(image, timeout_s=_GIVE_UP_S)
                    is_good = (time.time() - began) * 1000 <= objective_ms
                except ServiceError:  # a refusal or a timeout: counted, not an end
                    is_good = False
                observed.probes.append((time.time(), is_good))

    threads = [threading.Thread(target=target, name=target.__name__) for target in (sample, probe)]
    for thread in threads:
        thread.start()
    try:
        yield observed
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _memory_bytes(server: Server) -> int | None:
    """Return the PSS of Triton; None while it is dead."""
    try:
        return pss_bytes(server.triton_pid)
    except OSError:
        return None
