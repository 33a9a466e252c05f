"""Worker processes, each with a pipe to this process."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("spawn")  # gRPC does not survive a fork


def start_worker(work: Callable[..., None], *arguments: Any, name: str) -> tuple[BaseProcess, Connection]:
    """Start a process that calls `work` with its end of a pipe and the arguments. Returns the process, and the other end.

    Ctrl-C does not reach it: this process ends it.
    """
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=work, args=(theirs, *arguments), daemon=True, name=name)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the process inherits the mask
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def reason_of_end(status: int | None, process: str, memory_advice: str) -> str:
    """Return why a worker process has ended, for an error.

    Args:
        status: Its exit status; negative if a signal killed it.
        process: What it is, such as `a process of the load generator`.
        memory_advice: What to do if the system is out of memory.
    """
    if status is not None and status < 0:
        return f"{process} was killed by {signal.Signals(-status).name}. If the system is out of memory, {memory_advice}"
    return (
        f"{process} ended with status {status}; its error is above. A script needs "
        '`if __name__ == "__main__"` around what it runs, because the processes import it.'
    )
