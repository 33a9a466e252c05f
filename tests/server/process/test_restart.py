"""A Triton that dies or hangs is restarted by its guard, and what happened is kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_server import PortError, Server, ServerEvent, dead_servers, read_states, serve, server_status, stop_server
from defensemble_server.addresses import claim_ports
from defensemble_server.process.events import server_events
from defensemble_server.process.guard_process.log_files import LOGS_KEPT, last_lines, rotate
from defensemble_server.process.guard_process.main import BACKOFF_S
from defensemble_server.process.state import state_file
from defensemble_server.runtime.find import find_runtime
from defensemble_server.serve import start_server
from tests.support import tiny
from tests.support.calls import FREE, ask, gone_within, port_is_free, processor_ticks, write_slow_model

DEADLINE_S = 60


def until(holds: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kinds(server: Server) -> list[str]:
    return [event.kind for event in server.events()]


def restarts_after(server: Server, act: Callable[[], None]) -> ServerEvent:
    """Do something that ends Triton, wait for the restart, and return the event with the reason."""
    before = server_status(server.state).restarts
    act()
    until(lambda: server_status(server.state).restarts == before + 1)
    return next(event for event in reversed(server.events()) if event.is_fault)


def answers_correctly(server: Server) -> bool:
    images = tiny.images(3)
    expected = (tiny.softmax(tiny.logits(1, images)) + tiny.softmax(tiny.logits(2, images))) / 2
    return bool(np.abs(ask(server, "ensemble", images, "probabilities") - expected).max() < 1e-6)


def test_a_killed_server_is_back_on_its_ports_with_its_key(repository: Path) -> None:
    with serve(repository, FREE) as server:
        state, first = server.state, server.triton_pid
        fault = restarts_after(server, lambda: os.kill(first, signal.SIGKILL))
        assert (fault.kind, fault.facts["status"], fault.facts["pid"], fault.facts["restart_in_s"]) == ("died", -signal.SIGKILL, first, 0)
        assert "SIGKILL" in fault.text
        assert answers_correctly(server)
        status = server_status(state)
        assert state in read_states()
        assert status.pid == server.triton_pid != first
        assert status.restarting_since is None
        key = {"x-admin-key": state.admin_key}
        assert urllib3.request("POST", f"{server.http_url}/v2/repository/index", json={}, headers=key).status == 200
        assert Path(state.log).read_text().count("=== Triton is started") == 2
        written = Path(state.log).read_text() + (state_file(state.grpc_port).with_suffix(".events.jsonl")).read_text()
    assert [event.kind for event in server_events(state)] == ["started", "died", "restarted", "ended"]
    assert server_events(state)[-1].facts["ordered"] is True
    assert str(repository) not in [dead.repository for dead in dead_servers()]
    assert state.admin_key not in written


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_detached_server_that_crashes_is_restarted(repository: Path, number: signal.Signals) -> None:
    with serve(repository, FREE) as server:
        server.detach()
    try:
        for _ in range(2):
            pid = server.triton_pid
            fault = restarts_after(server, lambda pid=pid: os.kill(pid, number))  # type: ignore[misc]
            assert (fault.kind, fault.facts["restart_in_s"]) == ("died", 0), "a correct answer was between them"
            assert fault.facts["status"] in (-number, 128 + number)
            assert answers_correctly(server)
    finally:
        stop_server(server.state.grpc_port)
        server.wait()


@pytest.mark.slow
def test_a_server_that_hangs_is_killed_and_restarted(repository: Path) -> None:
    with serve(repository, FREE) as server:
        for _ in range(2):
            pid = server.triton_pid
            fault = restarts_after(server, lambda pid=pid: os.kill(pid, signal.SIGSTOP))  # type: ignore[misc]
            assert (fault.kind, fault.facts["pid"]) == ("hung", pid)
            assert answers_correctly(server)


@pytest.mark.slow
def test_a_saturated_server_is_not_killed(repository: Path) -> None:
    import tritonclient.grpc

    write_slow_model(repository)
    body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [60_000]}]}
    over = time.monotonic() + 25
    answered: list[int] = []

    def over_http() -> None:
        with urllib3.PoolManager() as pool:
            while time.monotonic() < over:
                answered.append(
                    pool.request("POST", f"{server.http_url}/v2/models/slow/infer", json=body, timeout=300, retries=False).status
                )

    def with_large_bodies() -> None:
        # 9 MB of JSON keep every thread of the HTTP front end busy: health calls over HTTP then wait for 10 s and more.
        large = json.dumps({**body, "pad": [0] * 3_000_000}).encode()
        with urllib3.PoolManager() as pool:
            while time.monotonic() < over:
                pool.request("POST", f"{server.http_url}/v2/models/slow/infer", body=large, timeout=300, retries=False)

    def over_grpc() -> None:
        with tritonclient.grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
            rounds = tritonclient.grpc.InferInput("rounds", [1, 1], "INT64")
            rounds.set_data_from_numpy(np.array([[60_000]]))
            while time.monotonic() < over:
                client.infer("slow", [rounds], client_timeout=300)
                answered.append(200)

    with serve(repository, FREE) as server:
        pid = server.triton_pid
        with ThreadPoolExecutor(96) as pool:
            for call in [pool.submit(run) for run in (over_http, over_grpc, with_large_bodies) for _ in range(32)]:
                call.result(600)
        assert kinds(server) == ["started"]
        assert server.triton_pid == pid
    assert set(answered) == {200}


@pytest.mark.slow
def test_orders_are_no_deaths(repository: Path) -> None:
    with serve(repository, FREE) as server:
        server.detach()
        os.kill(server.triton_pid, signal.SIGTERM)
        server.wait()
    assert kinds(server) == ["started", "ended"]
    assert server.events()[-1].facts["ordered"] is True
    for number in (signal.SIGTERM, signal.SIGINT):
        with serve(repository, FREE) as server:
            server.detach()
            os.kill(server.state.pid, number)
            server.wait()
        assert kinds(server) == ["started", "ended"]


@pytest.mark.slow
def test_an_order_whose_drain_is_cut_short_is_an_order(repository: Path) -> None:
    write_slow_model(repository)
    body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [10**9]}]}
    with serve(repository, FREE) as server, ThreadPoolExecutor(1) as pool:
        server.detach()
        before = processor_ticks(server.triton_pid)
        asked = pool.submit(urllib3.request, "POST", f"{server.http_url}/v2/models/slow/infer", json=body, retries=False, timeout=60)
        until(lambda: processor_ticks(server.triton_pid) > before + 20)
        os.kill(server.triton_pid, signal.SIGTERM)
        assert server.wait() == 1
        assert asked.exception() is not None
    assert kinds(server) == ["started", "ended"]
    assert server.events()[-1].facts["ordered"] is True


@pytest.mark.slow
def test_without_restarts_a_death_is_the_end_and_is_remembered(repository: Path) -> None:
    with serve(repository, replace(FREE, restart=False)) as server:
        os.kill(server.triton_pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
    assert kinds(server) == ["started", "died", "ended"]
    (dead,) = dead_servers(repository)
    assert (dead.grpc_port, dead.log) == (server.state.grpc_port, server.state.log)
    assert "SIGKILL" in dead.cause
    with serve(repository, FREE):
        assert dead_servers(repository) == [], "it has a successor"
    assert dead_servers(repository) == []


@pytest.mark.slow
def test_a_guard_that_was_killed_is_remembered(repository: Path) -> None:
    server = start_server(repository, FREE)
    os.kill(server.state.pid, signal.SIGKILL)
    assert gone_within(repository, 20)
    server.stop()
    (dead,) = dead_servers(repository)
    assert "guard" in dead.cause


@pytest.fixture
def breakable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `tritonserver` on PATH that ends with status 3, in words, once the file that is returned is there."""
    runtime = find_runtime("embedded", on_progress=lambda text: None)
    settings = [f"--backend-config=onnxruntime,{key}={value}" for key, value in runtime.backend_settings.items()]
    real = shlex.join([str(runtime.executable), f"--backend-directory={runtime.backend_directory}", *settings])
    broken = tmp_path / "broken"
    program = tmp_path / "bin/tritonserver"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nif [ -e {broken} ]; then echo no luck today; exit 3; fi\n"
        f'export LD_LIBRARY_PATH={runtime.environment["LD_LIBRARY_PATH"]}\nexec {real} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return broken


@pytest.mark.slow
def test_a_crash_loop_ends_after_its_waits(repository: Path, breakable: Path) -> None:
    seen: list[ServerEvent] = []
    with serve(repository, replace(FREE, runtime="path")) as server:
        breakable.touch()
        threading.Timer(0.3, os.kill, (server.triton_pid, signal.SIGKILL)).start()
        begin = time.monotonic()
        assert server.wait(seen.append) == 1
        assert time.monotonic() - begin > sum(BACKOFF_S)
    assert [event.kind for event in seen] == ["died"] * 6 + ["ended"]
    assert [event.facts.get("restart_in_s") for event in seen[:6]] == [*BACKOFF_S, None]
    assert [event.facts["status"] for event in seen] == [-signal.SIGKILL, *[3] * 5, 1]
    assert seen[5].last_lines == ("no luck today",)
    (dead,) = dead_servers(repository)
    assert dead.last_lines == ("no luck today",)
    assert "status 3" in dead.cause


@pytest.mark.slow
def test_a_correct_answer_ends_a_row_of_deaths(repository: Path, breakable: Path) -> None:
    with serve(repository, replace(FREE, runtime="path")) as server:
        for _ in range(2):
            breakable.touch()
            before = len(server.events())
            os.kill(server.triton_pid, signal.SIGKILL)
            until(lambda before=before: len(server.events()) >= before + 3)  # type: ignore[misc]
            breakable.unlink()
            until(lambda: kinds(server)[-1] == "restarted")
            assert [event.facts["restart_in_s"] for event in server.events()[before:-1]][:3] == list(BACKOFF_S[:3])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "terminate the guard"])
def test_an_order_between_two_starts_ends_it_at_once(repository: Path, breakable: Path, how: str) -> None:
    with serve(repository, replace(FREE, runtime="path")) as server:
        breakable.touch()
        os.kill(server.triton_pid, signal.SIGKILL)
        until(lambda: len(server.events()) >= 4)
        begin = time.monotonic()
        if how == "stop":
            server.stop()
        else:
            os.kill(server.state.pid, signal.SIGTERM)
            assert server.wait() == 0
        assert time.monotonic() - begin < 2
    assert server.events()[-1].facts["ordered"] is True
    assert not state_file(server.state.grpc_port).exists()


@pytest.mark.slow
def test_a_parent_that_is_killed_while_its_server_is_down_leaves_nothing(repository: Path, breakable: Path) -> None:
    code = (
        "import sys, time; from defensemble_server import ServeOptions, serve\n"
        "with serve(sys.argv[1], ServeOptions('path', http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:\n"
        "    print(server.state.grpc_port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(repository)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        (state,) = [state for state in read_states() if state.grpc_port == port]
        breakable.touch()
        os.kill(server_status(state).pid, signal.SIGKILL)
        until(lambda: len(server_events(state)) >= 4)
        parent.kill()
    until(lambda: not state.alive)
    assert tiny.leftovers(repository) == []
    assert not state_file(port).exists()


@pytest.mark.slow
def test_a_repository_that_cannot_be_served_at_a_restart_is_an_event_and_is_tried_again(repository: Path) -> None:
    with serve(repository, FREE) as server:
        kept = repository.rename(repository.with_name("elsewhere"))
        os.kill(server.triton_pid, signal.SIGKILL)
        until(lambda: "not_restarted" in kinds(server))
        status = server_status(server.state)
        assert status.restarting_since == server.events()[1].time
        assert status.uptime_s == 0
        kept.rename(repository)
        until(lambda: kinds(server)[-1] == "restarted")
        assert answers_correctly(server)
    (failed, *_) = [event for event in server.events() if event.kind == "not_restarted"]
    assert str(repository) in failed.facts["error"]


@pytest.mark.slow
def test_a_model_whose_answers_are_wrong_after_a_restart_is_not_served(repository: Path) -> None:
    with serve(repository, FREE) as server:
        (config,) = repository.glob("average_*/config.pbtxt")
        config.write_text(config.read_text().replace("[1.0, 1.0]", "[1.0, 3.0]").replace("[1, 1]", "[1, 3]"))
        restarts_after(server, lambda: os.kill(server.triton_pid, signal.SIGKILL))
        assert list(server.events()[-1].facts["problems"]) == ["ensemble"]
        assert urllib3.request("GET", f"{server.http_url}/v2/models/ensemble/ready").status != 200
        assert urllib3.request("GET", f"{server.http_url}/v2/models/alpha/ready").status == 200


@pytest.mark.slow
def test_a_port_that_is_taken_at_a_restart_is_named_and_tried_again(repository: Path) -> None:
    with serve(repository, FREE) as server:
        port = server.state.grpc_port
        os.kill(server.state.pid, signal.SIGSTOP)
        os.kill(server.triton_pid, signal.SIGKILL)
        until(lambda: port_is_free(port))
        with socket.create_server(("127.0.0.1", port)):
            os.kill(server.state.pid, signal.SIGCONT)
            until(lambda: "not_restarted" in kinds(server))
        until(lambda: kinds(server)[-1] == "restarted")
        assert answers_correctly(server)
    (failed, *_) = [event for event in server.events() if event.kind == "not_restarted"]
    assert f"grpc port {port}" in failed.text


@pytest.mark.slow
def test_the_ports_of_a_server_that_is_down_are_not_given_away(repository: Path, breakable: Path) -> None:
    with serve(repository, replace(FREE, runtime="path")) as server:
        breakable.touch()
        os.kill(server.triton_pid, signal.SIGKILL)
        until(lambda: len(server.events()) >= 4)
        state = server.state
        with pytest.raises(PortError, match=f"http port {state.http_port} .*{state.repository}"):
            claim_ports(state.host, {"http": state.http_port, "grpc": 0, "metrics": 0})


def test_free_ports_are_below_those_of_clients() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [port for _ in range(20) for port in claim_ports(FREE.host, FREE.ports).values()]
    assert max(ports) < low
    assert len(set(ports)) > 40


def test_a_log_is_cut_and_its_older_parts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_server.process.guard_process.log_files.LOG_BYTES", 100)
    log = tmp_path / "log"
    rotate(str(log))
    with log.open("ab", buffering=0) as file:  # as Triton holds it
        for number in range(LOGS_KEPT + 3):
            file.write(f"{number}\n".encode() * 60)
            rotate(str(log))
        file.write(b"last\n")
    assert log.read_text() == "last\n"
    kept = {path.name: path.read_text()[0] for path in tmp_path.glob("log.*")}
    assert kept == {f"log.{number}": str(LOGS_KEPT + 3 - number) for number in range(1, LOGS_KEPT + 1)}


def test_the_last_lines_are_of_the_newest_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(str(log)) == []
    log.write_text("before\n=== Triton is started: 1\nold\n=== Triton is started: 2\nnew\nnewer\n")
    assert last_lines(str(log)) == ["new", "newer"]
    assert last_lines(str(log), 1) == ["newer"]
