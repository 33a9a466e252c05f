"""The events that guards write down: what is damaged there is left out, and never an error of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from defensemble_server import ServerState, dead_servers, server_status
from defensemble_server.process.events import server_events
from defensemble_server.process.state import events_file, process_start

PORT = 23456
GUARD = os.getpid()
START = process_start(GUARD)
STARTED = {"time": 1.7e9, "event": "started", "guard": GUARD, "guard_started": START, "pid": 4, "repository": "/r", "grpc_port": PORT}
DIED = {"time": 1.7e9 + 5, "event": "died", "guard": GUARD, "status": -11, "uptime_s": 5.0, "restart_in_s": 0, "last_lines": ["a", "b"]}
RESTARTED = {"time": 1.7e9 + 6, "event": "restarted", "guard": GUARD, "pid": 5, "outage_s": 0.7, "problems": {"alpha": "damaged"}}


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = events_file(PORT)
    path.parent.mkdir(parents=True)
    return path


def state() -> ServerState:
    assert START is not None
    return ServerState(GUARD, START, "embedded", "127.0.0.1", PORT + 1, PORT, PORT + 2, "/r", "k" * 16, "/log")


def write(path: Path, *events: object) -> None:
    path.write_text("".join(f"{event if isinstance(event, str) else json.dumps(event)}\n" for event in events))


def test_a_restart_is_counted_with_its_cause_and_what_is_not_served_since(events: Path) -> None:
    write(events, STARTED, DIED, RESTARTED)
    status = server_status(state())
    assert (status.restarts, status.pid, status.restarting_since) == (1, 5, None)
    assert status.not_served == {"alpha": "damaged"}
    assert "SIGSEGV" in status.fault_text
    assert "0.7 s" in status.fault_text
    assert "alpha" in status.text
    write(events, STARTED, DIED)
    assert server_status(state()).restarting_since == DIED["time"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "\udcff".encode(errors="surrogateescape").decode("latin-1"),
        '{"time": 1, "event": "died", "guard": 1e999}',
        '{"time": 1e300, "event": "died", "guard": GUARD}',
        '{"time": NaN, "event": "died", "guard": GUARD}',
        '{"time": 1, "event": "restarted", "guard": GUARD}',
        '{"time": 1, "event": "restarted", "guard": GUARD, "pid": "x"}',
        '{"time": 1, "event": "restarted", "guard": GUARD, "pid": 7, "problems": "x"}',
        '{"time": 1, "event": "died", "guard": GUARD, "last_lines": 5}',
    ],
)
def test_damaged_lines_are_left_out(events: Path, line: str) -> None:
    write(events, STARTED, line.replace("GUARD", str(GUARD)), DIED, RESTARTED)  # test ids must be equal in all workers
    assert [event.kind for event in server_events(state())] == ["started", "died", "restarted"]
    assert server_status(state()).restarts == 1
    assert dead_servers() == []


def test_what_is_no_file_of_events_holds_none(events: Path) -> None:
    events.mkdir()
    assert server_events(state()) == []
    events.rmdir()
    os.mkfifo(events)
    assert server_events(state()) == []
    assert server_status(state()).restarts == 0
    assert dead_servers() == []
