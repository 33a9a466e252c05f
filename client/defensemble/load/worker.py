"""A process that makes the calls of a load test, and its end in the parent."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from defensemble_repository.filesystem.signals import DeferredSigint

from .._exceptions import DefensembleError, WorkerEndedError
from .._worker_process import reason_of_end, start_worker
from .calling import Caller, CallRecord, ClosedPhase, OpenPhase, PhaseRun, TargetSpec
from .result import ClientCounters

Phase = ClosedPhase | OpenPhase
_START_S = 60.0
_LEAD_S = 0.05  # from the order to begin to the beginning, so that all processes have it in time
_POLL_S = 0.02
_REPORT_S = 1.0
_SWITCH_S = 0.0005  # a thread whose time has come gets the interpreter within this, not within 5 ms
_STOP, _READY = "stop", "ready"


@dataclass(frozen=True)
class PhaseEnd:
    """The end of a phase in one process, or in all of them.

    Attributes:
        busy_s: How long each caller of a closed loop called.
        cpu_share: Processor time of the busiest process divided by the time of the phase: near 1, it could not do more.
        counters: What was counted where the calls were made.
        is_realtime: Whether each process had real-time priority.
        was_stopped: Whether an interrupt ended the phase.
    """

    busy_s: tuple[float, ...]
    cpu_share: float
    counters: ClientCounters
    is_realtime: bool
    was_stopped: bool = False


class GeneratorProcesses:
    """The processes that make the calls.

    Args:
        targets: What can be called.
        count: Number of processes at first.
        keeps_schedule: Whether calls have times, so that the processes ask for real-time priority.

    Raises:
        WorkerEndedError: A process could not start.

    Example:
        >>> with GeneratorProcesses([spec], 2) as processes:
        ...     end = processes.run(0, phases, on_records=recording.add, interrupts=interrupts)
    """

    def __init__(self, targets: Sequence[TargetSpec], count: int, *, keeps_schedule: bool = False) -> None:
        self._start_message = (tuple(targets), keeps_schedule)
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self.grow(count)

    def __enter__(self) -> GeneratorProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def __len__(self) -> int:
        return len(self._workers)

    def grow(self, count: int) -> None:
        """Start processes until there are `count`."""
        try:
            while len(self._workers) < count:
                self._workers.append(start_worker(_work, name="load generator"))
                self._workers[-1][1].send(self._start_message)
        except BaseException:
            self._close()
            raise

    def run(
        self,
        target: int,
        phases: Sequence[Phase],
        on_begin: Callable[[float], None],
        on_records: Callable[[list[CallRecord]], None],
        interrupts: DeferredSigint,
    ) -> PhaseEnd:
        """Run a phase to its end: until each call has ended. After an interrupt, no more calls are made.

        Args:
            target: Index of the target.
            phases: The part of each process.
            on_begin: Called with the time of the beginning, by the monotonic clock, shortly before it.
            on_records: Called with the calls that ended, about once a second, and at the end.
            interrupts: Records Ctrl-C.

        Raises:
            WorkerEndedError: A process ended.
            KeyboardInterrupt: There was a second interrupt.
        """
        connections = [connection for _, connection in self._workers[: len(phases)]]
        for connection, phase in zip(connections, phases, strict=True):
            connection.send((target, phase))
        for connection in connections:
            self._receive(connection)
        at = time.monotonic() + _LEAD_S
        on_begin(at)
        for connection in connections:
            connection.send(at)
        ends: list[PhaseEnd] = []
        is_stopping = False
        while len(ends) < len(phases):
            if interrupts.is_pending:
                interrupts.is_pending = False
                if is_stopping:
                    raise KeyboardInterrupt
                is_stopping = True
                for connection in connections:
                    connection.send(_STOP)
            for ready in wait(connections, timeout=0.1):
                message = self._receive(ready)
                if isinstance(message, PhaseEnd):
                    ends.append(message)
                else:
                    on_records(message)
        return PhaseEnd(
            tuple(busy for end in ends for busy in end.busy_s),
            max(end.cpu_share for end in ends),
            ClientCounters(*(sum(getattr(end.counters, name) for end in ends) for name in ClientCounters.__struct_fields__)),
            all(end.is_realtime for end in ends),
            is_stopping,
        )

    def _receive(self, connection: Any) -> Any:
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            process = next(process for process, own in self._workers if own is connection)
            process.join(_START_S)
            reason = reason_of_end(process.exitcode, "a process of the load generator", "use fewer callers.")
            raise WorkerEndedError(reason) from None
        if isinstance(message, DefensembleError):
            raise message
        if isinstance(message, str) and message != _READY:
            raise RuntimeError(f"a process of the load generator failed:\n{message}")
        return message

    def _close(self) -> None:
        workers, self._workers = self._workers, []
        for process, _ in workers:
            process.kill()
        for process, connection in workers:
            process.join()
            process.close()
            connection.close()


def _work(connection: Connection) -> None:
    """Make calls until the parent closes the connection or ends."""
    try:
        sys.setswitchinterval(_SWITCH_S)
        targets, keeps_schedule = connection.recv()
        is_realtime = keeps_schedule and _request_priority()
        callers = [Caller(spec) for spec in targets]
        while True:
            order = connection.recv()
            if order != _STOP:  # of a phase that has just ended
                target, phase = order
                _run(connection, callers[target], phase, is_realtime)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended
    except BaseException as error:
        connection.send(error if isinstance(error, DefensembleError) else traceback.format_exc())
    os._exit(0)  # threads that wait for their time would not end


def _request_priority() -> bool:
    """Let this process run as soon as the time of a call has come, where the system allows it: as root, or after `ulimit -r 1`.

    Returns whether it does.

    On two cores with other processes on both, 13 to 29 % of the calls at 60/s over HTTP were more than 1 ms late (8 runs), and 0.4 to 2.8 %
    with this (4 runs). Without the permission the calls are made as they can be, and how late they were is in the result.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


def _run(connection: Connection, caller: Caller, phase: Phase, is_realtime: bool) -> None:
    run = PhaseRun(caller, phase)
    connection.send(_READY)
    began, cpu_s = connection.recv(), time.process_time()
    run.begin(began)
    next_report = began + _REPORT_S
    while not run.is_finished:
        if connection.poll(_POLL_S):
            assert connection.recv() == _STOP
            run.stop()
        if time.monotonic() >= next_report:
            next_report += _REPORT_S
            connection.send(run.take_records())
    connection.send(run.take_records())
    cpu_share = (time.process_time() - cpu_s) / max(time.monotonic() - began, 1e-9)
    connection.send(PhaseEnd(tuple(run.busy_s), cpu_share, caller.take_counters(), is_realtime))
