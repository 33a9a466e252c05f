"""Faults of one member: it hangs, fails, or computes something else."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np

from benchmarks.common.servers import ENSEMBLE
from benchmarks.faulting.fault import ACCEPTED, REFUSED, UNANSWERED, Injection
from benchmarks.faulting.stage import Stage
from benchmarks.faulting.trap import FAILS, HANGS, bias_of, overwrite_memory, trap_image
from defensemble import DeadlineExceededError, GrpcTransport, HttpTransport, OutputRequest, ServiceError, Transport

_HANG_TIMEOUT_S = 0.5  # of the one call that makes the member hang
_FAIL_TIMEOUT_S = 5.0
_INSTANCES = 64  # more than a member has


def hang(stage: Stage) -> Injection:
    """Send images for which the first member runs for ever, until all its instances do."""
    injection = Injection()
    with closing(HttpTransport(stage.server.http_url)) as transport:
        for _ in range(_INSTANCES):
            _spring(transport, stage, HANGS, _HANG_TIMEOUT_S, injection)
            if stage.find_problem(stage.expected()) is not None:
                break
    return injection.end()


def fail(stage: Stage) -> Injection:
    """Send images for which the first member fails, over both protocols."""
    injection = Injection()
    ends = time.monotonic() + stage.effort.flood_s
    with closing(HttpTransport(stage.server.http_url)) as http, closing(GrpcTransport(stage.server.grpc_url)) as grpc:
        while time.monotonic() < ends:
            for transport in (http, grpc):
                _spring(transport, stage, FAILS, _FAIL_TIMEOUT_S, injection)
            time.sleep(0.01)
    return injection.end()


def compute_nan(stage: Stage) -> Injection:
    """Overwrite the last bias of the first member with NaN, in the server's memory."""
    return _overwrite_bias(stage, float("nan"))


def compute_wrong(stage: Stage) -> Injection:
    """Overwrite the last bias of the first member with other finite values, in the server's memory."""
    return _overwrite_bias(stage, 3.0)


def _overwrite_bias(stage: Stage, value: float) -> Injection:
    bias = bias_of(stage.members[0])
    new = np.zeros_like(bias)
    new[0] = value
    injection = Injection()
    injection.facts["copies_overwritten"] = overwrite_memory(stage.server.triton_pid, {bias.tobytes(): new.tobytes()})
    return injection.end()


def _spring(transport: Transport, stage: Stage, value: float, timeout_s: float, injection: Injection) -> None:
    try:
        transport.infer(ENSEMBLE, {"images": trap_image(stage.pool, value)}, [OutputRequest("probabilities")], timeout_s)
    except DeadlineExceededError:
        injection.add(UNANSWERED)
    except ServiceError:
        injection.add(REFUSED)
    else:
        injection.add(ACCEPTED, f"an image with the pixel {value:g}")
