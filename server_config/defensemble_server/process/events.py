"""The events of servers (deaths, hangs, restarts, ends), which their guards record; they are kept after a server has ended."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defensemble_repository.filesystem.regular_files import read_regular

from .state import ServerState, events_file, process_start, state_folder, when_written

# Older faults are not reported.
RECENT_S = 24 * 3600.0
# The kinds that interrupt the service.
FAULTS = ("died", "hung", "faulty", "not_restarted")
_FILES_KEPT = 50


@dataclass(frozen=True)
class ServerEvent:
    """An event of a server.

    Args:
        time: Seconds since the epoch.
        kind: `started` (first verified answers), `died`, `hung` (and was killed), `faulty` (killed because a model that answers wrongly
            could not be repaired), `not_restarted` (a restart failed), `restarted` (verified answers again) or `ended`; of the supervisor:
            `wrong` (a model answers wrongly), `repaired`, `not_repaired`, `hanging` (a model hangs, and restarts are not allowed) and
            `supervisor_ended` (and is started again).
        guard: Process ID of the server's guard.
        facts: Details, which depend on the kind.

    Example:
        >>> for event in server.events():
        ...     print(event.when, event.text)
    """

    time: float
    kind: str
    guard: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_fault(self) -> bool:
        """Whether the event interrupted the service."""
        return self.kind in FAULTS

    @property
    def text(self) -> str:
        """The event in words, without its time."""
        facts = self.facts
        if self.kind == "started":
            return f"serving {facts.get('repository')} (process {facts.get('pid')})"
        if self.kind == "restarted":
            problems = facts.get("problems") or {}
            not_served = f"; NOT served: {', '.join(problems)}" if problems else ""
            return f"restarted, correct answers again after {facts.get('outage_s')} s (process {facts.get('pid')}){not_served}"
        if self.kind == "ended":
            return "stopped" if facts.get("ordered") else f"ended with status {facts.get('status')}, not restarted"
        if self.kind == "repaired":
            if not facts.get("new_version"):
                return f"{self._model} answers correctly again, or is not served any more, after {facts.get('seconds')} s"
            return f"{self._model} was loaded again as version {facts['new_version']}; correct answers after {facts.get('seconds')} s"
        if not self.is_fault:
            return self.cause
        wait_s = facts.get("restart_in_s")
        return f"{self.cause}; " + ("not restarted" if wait_s is None else "restarting" if wait_s == 0 else f"restarting in {wait_s} s")

    @property
    def cause(self) -> str:
        """What happened, for a fault or a finding of the supervisor."""
        facts = self.facts
        if self.kind == "died":
            return f"Triton died ({_status(facts.get('status'))}) after {_duration(facts.get('uptime_s'))}"
        if self.kind == "hung":
            cause = f" ({facts['cause']})" if facts.get("cause") else ""
            return f"Triton stopped answering{cause} and was killed after {_duration(facts.get('uptime_s'))}"
        if self.kind == "faulty":
            return f"Triton was killed because {facts.get('cause')}"
        if self.kind == "wrong":
            return f"{self._model} answers wrongly: {facts.get('text')}"
        if self.kind == "not_repaired":
            return f"{self._model} answers wrongly and could not be repaired: {facts.get('error')}"
        if self.kind == "hanging":
            return f"{facts.get('cause')}; restarts are not allowed"
        if self.kind == "supervisor_ended":
            return f"the supervisor ended ({_status(facts.get('status'))}) and is started again"
        return f"the restart failed: {facts.get('error')}"

    @property
    def _model(self) -> str:
        version = self.facts.get("version")
        return str(self.facts.get("model")) + ("" if version is None else f"@{version}")

    @property
    def when(self) -> str:
        """The time on this machine's clock."""
        return _clock(self.time)

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of Triton's log at that time."""
        return tuple(self.facts.get("last_lines") or ())


@dataclass(frozen=True)
class ServerStatus:
    """The status of a running server.

    Args:
        state: Its addresses and repository.
        pid: Process ID of Triton, which has ended while the server restarts.
        restarts: Number of restarts.
        restarting_since: Start of the outage in seconds since the epoch; None if it is serving.
        uptime_s: Seconds since its answers were last verified; 0 while it restarts.
        last_fault: The latest event that interrupted the service.
        not_served: The models that the latest start could not serve, and why.
        events: Its events, oldest first.
        wrong: The models that answer wrongly and were not repaired yet, and why.

    Example:
        >>> [(status.text, status.restarts) for status in map(server_status, find_states())]
    """

    state: ServerState
    pid: int
    restarts: int
    restarting_since: float | None
    uptime_s: float
    last_fault: ServerEvent | None
    not_served: Mapping[str, str]
    events: tuple[ServerEvent, ...]
    wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Whether it is running or restarting, since when, and what it does not serve."""
        if self.restarting_since is not None:
            return f"restarting since {_clock(self.restarting_since)}"
        missing = f"; NOT served: {', '.join(self.not_served)}" if self.not_served else ""
        wrong = f"; WRONG answers: {', '.join(self.wrong)}" if self.wrong else ""
        return f"running for {_duration(self.uptime_s)} (process {self.pid}){missing}{wrong}"

    @property
    def fault_text(self) -> str:
        """When and why the last interruption happened, and how long it lasted; empty if there was none."""
        fault = self.last_fault
        if fault is None:
            return ""
        last = next(event for event in reversed(self.events) if event is fault or event.kind == "restarted")
        follows = fault.text if last.kind != "restarted" else f"{fault.cause}; correct answers again after {last.facts.get('outage_s')} s"
        return f"{fault.when}  {follows}"


@dataclass(frozen=True)
class DeadServer:
    """A server that ended unexpectedly and was not restarted.

    Example:
        >>> [(server.repository, server.text, server.log) for server in dead_servers()]
    """

    repository: str
    grpc_port: int
    time: float
    cause: str
    log: str
    last_lines: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """When and why it ended."""
        return f"died at {_clock(self.time)}: {self.cause}"


def server_events(server: ServerState) -> list[ServerEvent]:
    """Return the recorded events of a server, oldest first."""
    events = _read(events_file(server.grpc_port))
    starts = [
        index
        for index, event in enumerate(events)
        if event.kind == "started" and event.guard == server.pid and event.facts.get("guard_started") == server.started
    ]
    # If there are very many events, the start is no longer recorded.
    return [event for event in events[starts[-1] if starts else 0 :] if event.guard == server.pid]


def server_status(state: ServerState) -> ServerStatus:
    """Return the status of a running server from its recorded events."""
    events = server_events(state)
    pid, restarts, since, down = 0, 0, 0.0, None
    not_served: Mapping[str, str] = {}
    wrong: dict[str, str] = {}
    for event in events:
        if event.kind in ("wrong", "not_repaired"):
            wrong[event._model] = event.cause
        elif event.kind == "repaired":
            wrong.pop(event._model, None)
        if event.kind in ("started", "restarted"):
            pid, since, down, not_served = event.facts["pid"], event.time, None, event.facts.get("problems") or {}
            restarts += event.kind == "restarted"
            wrong.clear()
        elif event.is_fault and down is None:
            down = event.time
    fault = next((event for event in reversed(events) if event.is_fault), None)
    uptime_s = max(0.0, time.time() - since) if down is None and since else 0.0
    return ServerStatus(state, pid, restarts, down, uptime_s, fault, not_served, tuple(events), wrong)


def dead_servers(repository: Path | None = None) -> list[DeadServer]:
    """Return the servers (of `repository`, or all) that ended unexpectedly in the last 24 hours and were not started again since."""
    newest: dict[str, tuple[ServerEvent, list[ServerEvent]]] = {}
    for path in (state_folder() / "servers").glob("*.events.jsonl"):
        runs: list[list[ServerEvent]] = []
        for event in _read(path):
            if event.kind == "started":
                runs.append([])
            if runs:
                runs[-1].append(event)
        for run in runs:
            folder = str(run[0].facts.get("repository"))
            if folder not in newest or newest[folder][0].time < run[0].time:
                newest[folder] = (run[0], run)
    dead = []
    for folder, (start, run) in sorted(newest.items()):
        if repository is not None and folder != str(repository.resolve()):
            continue
        last = run[-1]
        if last.time < time.time() - RECENT_S or (last.kind == "ended" and last.facts.get("ordered")):
            continue
        if last.kind != "ended" and process_start(start.guard) == start.facts.get("guard_started"):
            continue  # it is running
        fault = next((event for event in reversed(run) if event.is_fault), None)
        if last.kind == "ended" and fault is not None:
            cause, lines = fault.text, next((event.last_lines for event in reversed(run) if event.last_lines), ())
        else:
            cause, lines = "its guard process was killed, or this machine was restarted", ()
        port, log = int(start.facts.get("grpc_port", 0)), str(start.facts.get("log", ""))
        dead.append(DeadServer(folder, port, last.time, cause, log, lines))
    return dead


def forget_old_events(in_use: set[int]) -> None:
    """Remove old event files, except those of the gRPC ports in use: each free port creates a new file."""
    kept = {events_file(port) for port in in_use}
    for path in sorted((state_folder() / "servers").glob("*.events.jsonl"), key=when_written)[:-_FILES_KEPT]:
        if path not in kept:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.1").unlink(missing_ok=True)


def _read(path: Path) -> list[ServerEvent]:
    lines: list[bytes] = []
    for part in (path.with_name(f"{path.name}.1"), path):  # the guard rotates long files
        with contextlib.suppress(OSError):  # missing or unreadable: a report of faults must not fail
            lines += read_regular(part).splitlines()
    events = []
    for line in lines:
        # A line can be incomplete (full disk) or foreign.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            facts = json.loads(line)
            event = ServerEvent(float(facts.pop("time")), str(facts.pop("event")), int(facts.pop("guard")), facts)
            _ = event.when, event.text, event.last_lines  # raise if a fact has the wrong type
            if event.kind in ("started", "restarted") and not (type(facts["pid"]) is int and isinstance(facts.get("problems", {}), dict)):
                raise TypeError(f"pid {facts['pid']!r}, problems {facts.get('problems')!r}")
            events.append(event)
    return events


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _status(status: object) -> str:
    if not isinstance(status, int) or status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _duration(seconds: object) -> str:
    if not isinstance(seconds, (int, float)):
        return "an unknown time"
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.1f} s"
