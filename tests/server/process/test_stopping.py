"""How a server ends: requests in flight are answered, and nothing is left, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import pytest

from defensemble_server import Server, StateError, read_states, serve, stop_server
from defensemble_server.process.state import find_state, state_file
from defensemble_server.serve import start_server
from tests.support import tiny
from tests.support.calls import FREE, ask, closed_within, gone_within, listening_sockets, processor_ticks, write_slow_model


@pytest.mark.usefixtures("no_shared_memory_left")
def test_nothing_is_left_after_a_normal_stop(repository: Path) -> None:
    with serve(repository, FREE) as server:
        state = server.state
        assert stat.S_IMODE(os.stat(Path(os.environ["XDG_STATE_HOME"]) / f"defensemble/servers/{state.grpc_port}.json").st_mode) == 0o600
        assert find_state(state.grpc_port) == state
        sockets = listening_sockets(state.http_port, state.grpc_port, state.metrics_port)
        assert len(sockets) == 3
        assert sorted(server.models) == sorted(path.name for path in repository.iterdir())
    assert tiny.leftovers(repository) == []
    assert closed_within(sockets, 10)
    assert state.grpc_port not in [other.grpc_port for other in read_states()]
    assert not list(repository.parent.glob(".*"))


CHILD = """
import sys, time
from defensemble_server import ServeOptions, serve
with serve(sys.argv[1], ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
    print(server.state.grpc_port, server.triton_pid, flush=True)
    time.sleep(600)
"""


def child(repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(repository)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.usefixtures("no_shared_memory_left")
def test_nothing_is_left_after_the_parent_was_killed(repository: Path) -> None:
    with child(repository) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().split()[0])
        sockets = listening_sockets(port)
        assert sockets
        parent.kill()
    assert gone_within(repository, 20)
    assert closed_within(sockets, 10)
    deadline = time.monotonic() + 20  # the supervisor removes its file when Triton has ended
    while state_file(port).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not state_file(port).exists()


def test_triton_ends_when_its_supervisor_is_killed(repository: Path) -> None:
    server = start_server(repository, FREE)
    os.kill(server.state.pid, signal.SIGKILL)
    assert gone_within(repository, 20)
    server.stop()
    assert server.state.grpc_port not in [state.grpc_port for state in read_states()], "a dead server's file is not believed"


@pytest.mark.usefixtures("no_shared_memory_left")
def test_interrupt_during_start_leaves_nothing(repository: Path) -> None:
    with child(repository) as parent:
        deadline = time.monotonic() + 60
        while not tiny.leftovers(repository) and time.monotonic() < deadline:
            time.sleep(0.002)
        parent.send_signal(signal.SIGINT)
        parent.wait(30)
    assert tiny.leftovers(repository) == []


def test_a_detached_server_outlives_the_context_until_it_is_stopped(repository: Path) -> None:
    with serve(repository, FREE) as server:
        server.detach()
    assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all()
    assert stop_server(server.state.grpc_port).repository == str(repository)
    assert tiny.leftovers(repository) == []
    with pytest.raises(StateError, match="gRPC port"):
        stop_server(server.state.grpc_port)
    server.wait()


@pytest.fixture
def slow(repository: Path) -> Path:
    return write_slow_model(repository)


@contextmanager
def request_in_flight(server: Server, rounds: int) -> Iterator[socket.socket]:
    """A request to `slow` that is being run."""
    body = json.dumps({"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [rounds]}]}).encode()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    before = processor_ticks(server.triton_pid)
    with socket.create_connection(("127.0.0.1", server.state.http_port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 30
        while processor_ticks(server.triton_pid) < before + 10:  # 0.1 s: an idle server takes none
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield connection


def test_a_request_in_flight_is_answered_while_the_server_drains(slow: Path) -> None:
    with serve(slow, replace(FREE, drain_s=30)) as server, request_in_flight(server, 1_000_000) as connection:
        server.detach()
        os.kill(server.triton_pid, signal.SIGTERM)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert b"200 OK" in answer.splitlines()[0]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [1_000_000]
        server.wait()


def test_an_interrupt_while_it_drains_ends_it_at_once_and_leaves_nothing(slow: Path) -> None:
    with serve(slow, replace(FREE, drain_s=60)) as server, request_in_flight(server, 60_000_000):
        begin = time.monotonic()
        Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            server.stop()
        assert tiny.leftovers(slow) == []
        assert not state_file(server.state.grpc_port).exists()
        assert time.monotonic() - begin < 30
