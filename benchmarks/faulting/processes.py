"""Faults of the server's process: it is killed, or frozen."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.common.processes import process_start_s
from benchmarks.faulting.fault import Injection
from benchmarks.faulting.stage import Stage

_POLL_S = 0.005


def kill(stage: Stage) -> Injection:
    """Kill the first server's Triton, and wait until it is dead."""
    pid = stage.server.triton_pid
    injection = Injection(facts={"signal": "SIGKILL"})
    os.kill(pid, signal.SIGKILL)
    while process_start_s(pid) is not None:
        time.sleep(_POLL_S)
    return injection.end()


def freeze(stage: Stage) -> Injection:
    """Stop the first server's Triton, which then neither answers nor ends."""
    injection = Injection(facts={"signal": "SIGSTOP"})
    os.kill(stage.server.triton_pid, signal.SIGSTOP)
    return injection.end()
