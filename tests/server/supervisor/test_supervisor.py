"""Real faults of a real server: wrong memory, models that hang, changed files; and what the supervisor does about each."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from benchmarks.faulting.trap import overwrite_memory
from defensemble_server import Server, ServerEvent, serve, server_status, stop_server
from defensemble_server.process.state import events_file, find_state
from tests.support import memory_faults as faults, tiny
from tests.support.calls import FREE, ask
from tests.support.closed_loop import load_on

WATCHED = replace(FREE, supervisor_port=0, check_interval_s=0.5, hang_after_s=2.0)
DEADLINE_S = 90
IMAGES = tiny.images(2, seed=3)
RIGHT = (tiny.softmax(faults.logits(1, IMAGES)) + tiny.softmax(faults.logits(2, IMAGES))) / 2
# NaN with payloads that occur nowhere else.
BROKEN = np.arange(0x7FC12340, 0x7FC12350, dtype=np.uint32).view(np.float32)
pytestmark = pytest.mark.slow


def until(holds: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def event(server: Server, kind: str, count: int = 1) -> ServerEvent:
    """Wait for the `count`-th event of a kind."""
    until(lambda: len([event for event in server.events() if event.kind == kind]) >= count)
    return [event for event in server.events() if event.kind == kind][count - 1]


def get(server: Server, path: str) -> tuple[int, Any]:
    try:
        answer = urllib3.request("GET", f"{server.supervisor_url}{path}", retries=False, timeout=10)
    except urllib3.exceptions.HTTPError:
        return 0, {}
    return answer.status, json.loads(answer.data) if path != "/metrics" else answer.data.decode()


def is_ready(server: Server) -> bool:
    return get(server, "/readyz")[0] == 200


@contextmanager
def watched(repository: Path, **options: Any) -> Iterator[Server]:
    """Serve a repository with a supervisor that has found every answer correct."""
    with serve(repository, replace(WATCHED, **options)) as server:
        until(lambda: is_ready(server))
        yield server


def break_memory(server: Server, seed: int, values: tiny.Array, *, where: tiny.Array | None = None) -> None:
    break_memories(server, [(faults.bias(seed) if where is None else where, values)])


def break_memories(server: Server, changes: list[tuple[tiny.Array, tiny.Array]]) -> None:
    try:
        overwrite_memory(server.triton_pid, {before.tobytes(): after.astype(np.float32).tobytes() for before, after in changes})
    except PermissionError:
        pytest.skip("this machine does not allow to write into the memory of another process (ptrace)")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def supervisor_of(server: Server) -> int:
    """Return the process ID of the supervisor."""
    (supervisor,) = [child for child in children(server.state.pid) if child != server.triton_pid]
    return supervisor


def ask_in_vain(server: Server, images: tiny.Array) -> None:
    """Ask a member that never answers; the connection ends with the server."""
    body = {"inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}]}
    with pytest.raises(urllib3.exceptions.ProtocolError):
        urllib3.request("POST", f"{server.http_url}/v2/models/beta/infer", json=body, retries=False, timeout=DEADLINE_S)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return faults.write_repository(tmp_path / "repository")


@pytest.mark.parametrize("fault", ["nan", "wrong"])
def test_a_member_whose_memory_is_wrong_is_loaded_again_under_load(repository: Path, fault: str) -> None:
    with watched(repository) as server, load_on(server, IMAGES, RIGHT) as load:
        until(lambda: len(load.right) > 50)
        begin = time.time()
        break_memory(server, 1, BROKEN if fault == "nan" else faults.bias(1)[::-1])
        found, repaired = event(server, "wrong"), event(server, "repaired")
        after = len(load.right)
        until(lambda: len(load.right) > after + 50 and is_ready(server))
        assert dict(server_status(server.state).wrong) == {}
        metrics = get(server, "/metrics")[1]
        kinds = [event.kind for event in server.events()]
    assert kinds == ["started", "wrong", "repaired"], "no restart"
    assert {name: found.facts[name] for name in ("model", "version", "fault")} == {"model": "alpha", "version": 1, "fault": fault}
    assert repaired.facts["new_version"] == 2
    recovered_at = repaired.facts["recovered_at"]
    assert begin - 1 < found.facts["detected_at"] < recovered_at
    assert load.failed == [], load
    assert load.wrong, "callers saw the fault before it was detected"
    assert begin - 0.5 < min(load.wrong)
    assert max(load.wrong) < recovered_at, f"{load}; repaired after {repaired.facts['seconds']} s"
    assert (repository / "alpha/2/model.onnx").read_bytes() == (repository / "alpha/1/model.onnx").read_bytes()
    (line,) = (repository / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["action"] == "refresh"
    assert 'defensemble_supervisor_repairs_total{result="done"} 1' in metrics


def test_members_that_are_wrong_at_the_same_time_are_repaired_by_one_edit(repository: Path) -> None:
    other = BROKEN.view(np.uint32) + np.uint32(0x100)
    with watched(repository) as server:
        break_memories(server, [(faults.bias(1), BROKEN), (faults.bias(2), other.view(np.float32))])
        event(server, "repaired", 2)
        until(lambda: is_ready(server))
        assert np.abs(ask(server, "ensemble", IMAGES, "probabilities") - RIGHT).max() < 1e-5
        kinds = [event.kind for event in server.events()]
        repaired = {event.facts["model"]: event.facts["new_version"] for event in server.events() if event.kind == "repaired"}
    assert kinds == ["started", "wrong", "wrong", "repaired", "repaired"], "no restart"
    assert repaired == {"alpha": 2, "beta": 2}
    assert len((repository / "history.jsonl").read_text().splitlines()) == 1


def test_a_killed_process_of_the_next_repair_is_started_again(repository: Path) -> None:
    with watched(repository) as server:
        supervisor = supervisor_of(server)
        (killed,) = children(supervisor)
        os.kill(killed, signal.SIGKILL)
        until(lambda: children(supervisor) not in ([], [killed]))
        break_memory(server, 1, BROKEN)
        event(server, "repaired")
        assert [event.kind for event in server.events()] == ["started", "wrong", "repaired"]


def test_a_member_that_hangs_is_found_and_the_server_restarted(tmp_path: Path) -> None:
    repository = faults.write_repository(tmp_path / "repository", loops=True)
    endless = np.full((1, *tiny.SHAPE), faults.FOREVER, np.float32)
    with watched(repository) as server:
        callers = [threading.Thread(target=ask_in_vain, args=(server, endless)) for _ in range(8)]  # more than it has instances
        for caller in callers:
            caller.start()
        hung, restarted = event(server, "hung"), event(server, "restarted")
        until(lambda: is_ready(server))
        assert np.abs(ask(server, "ensemble", IMAGES, "probabilities") - RIGHT).max() < 1e-5
        for caller in callers:
            caller.join()
    assert "beta@1" in hung.facts["models"]
    assert restarted.facts["detected_at"] == hung.facts["detected_at"] < restarted.facts["recovered_at"]


def test_a_queue_that_is_longer_than_the_time_of_a_hang_is_no_hang(tmp_path: Path) -> None:
    repository = faults.write_repository(tmp_path / "repository", loops=True, max_batch_size=1)
    slow = np.zeros((1, *tiny.SHAPE), np.float32)
    with watched(repository) as server:
        duration = 0.0
        while duration < 0.15:  # on a machine of any speed
            slow[0, 0, 0, 0] += 100_000
            begin = time.monotonic()
            ask(server, "beta", slow, "logits", timeout_s=DEADLINE_S)
            duration = time.monotonic() - begin
        logits = faults.logits(2, slow)
        over = time.monotonic() + 12
        waits = []

        def call() -> None:
            while time.monotonic() < over:
                begin = time.monotonic()
                assert np.abs(ask(server, "beta", slow, "logits", timeout_s=DEADLINE_S) / logits - 1).max() < 1e-4
                waits.append(time.monotonic() - begin)

        threads = [threading.Thread(target=call) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [event.kind for event in server.events()] == ["started"], server.events()
    assert max(waits) > WATCHED.hang_after_s


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_server_that_stops_is_replaced_and_not_ready_meanwhile(repository: Path, number: signal.Signals) -> None:
    with watched(repository) as server, load_on(server, IMAGES, RIGHT) as load:
        until(lambda: len(load.right) > 50)
        os.kill(server.triton_pid, number)
        fault = event(server, "hung" if number == signal.SIGSTOP else "died")
        until(lambda: not is_ready(server))
        restarted = event(server, "restarted")
        until(lambda: is_ready(server))
        after = len(load.right)
        until(lambda: len(load.right) > after + 50)
        status = get(server, "/status")[1]
    assert load.wrong == []
    assert restarted.facts["detected_at"] == fault.facts["detected_at"] < restarted.facts["recovered_at"]
    assert (status["server"]["restarts"], status["ready"], len(status["models"])) == (1, True, 3)


def test_a_model_whose_file_was_changed_too_is_reported_and_not_repaired(repository: Path) -> None:
    file = repository / "alpha/1/model.onnx"
    with watched(repository) as server:
        file.write_bytes(tiny.linear_onnx(9, classes=16))
        break_memory(server, 1, BROKEN)
        failed = event(server, "not_repaired")
        assert str(file) in failed.facts["error"]
        assert failed.facts["restarts"] is False
        until(lambda: not is_ready(server))
        assert "ensemble" in get(server, "/readyz")[1]["reasons"][0]
        assert get(server, "/healthz")[0] == 200
        assert urllib3.request("GET", f"{server.http_url}/v2/health/ready").status == 200, "Triton takes itself for ready"
        assert list(server_status(server.state).wrong) == ["alpha@1"]
        assert [event.kind for event in server.events()] == ["started", "wrong", "not_repaired"]
        assert not (repository / "alpha/2").exists()
        break_memory(server, 1, faults.bias(1), where=BROKEN)
        event(server, "repaired")
        until(lambda: is_ready(server))
        assert dict(server_status(server.state).wrong) == {}


def test_without_a_possible_edit_the_server_is_restarted(repository: Path) -> None:
    (repository / "history.jsonl").mkdir()
    with watched(repository) as server:
        break_memory(server, 1, BROKEN)
        failed, faulty = event(server, "not_repaired"), event(server, "faulty")
        event(server, "restarted")
        until(lambda: is_ready(server))
        assert np.abs(ask(server, "ensemble", IMAGES, "probabilities") - RIGHT).max() < 1e-5
    assert "history.jsonl" in failed.facts["error"]
    assert faulty.facts["model"] == "alpha"


def test_a_hang_is_reported_once_if_nothing_is_restarted(tmp_path: Path) -> None:
    repository = faults.write_repository(tmp_path / "repository", loops=True)
    endless = np.full((1, *tiny.SHAPE), faults.FOREVER, np.float32)
    with watched(repository, restart=False) as server:
        callers = [threading.Thread(target=ask_in_vain, args=(server, endless)) for _ in range(8)]
        for caller in callers:
            caller.start()
        hanging = event(server, "hanging")
        until(lambda: not is_ready(server))
        time.sleep(2)  # it would be reported again every half second
        assert [event.kind for event in server.events()] == ["started", "hanging"]
    for caller in callers:
        caller.join()
    assert "beta@1" in hanging.facts["models"]
    assert "beta@1" in hanging.text


def test_a_supervisor_that_is_started_again_finds_the_same_model_wrong(repository: Path) -> None:
    (repository / "history.jsonl").mkdir()  # so that no edit is possible
    with watched(repository, restart=False) as server:
        break_memory(server, 1, faults.bias(1)[::-1])
        assert event(server, "not_repaired").facts["restarts"] is False
        os.kill(supervisor_of(server), signal.SIGKILL)
        assert event(server, "wrong", 2).facts["model"] == "alpha"
        assert not is_ready(server)


def test_a_file_that_is_replaced_and_loaded_is_no_failure(repository: Path) -> None:
    from defensemble import Client

    images = faults.logits(2, IMAGES)
    with watched(repository) as server, Client(server.http_url, admin_key=server.state.admin_key) as client:
        faults.replace_file(repository, 7)
        time.sleep(3 * WATCHED.check_interval_s)  # checks of the old model, after the file has changed
        client.transport.load_model("alpha", DEADLINE_S)
        expected = (tiny.softmax(faults.logits(7, IMAGES)) + tiny.softmax(images)) / 2
        until(lambda: np.abs(ask(server, "ensemble", IMAGES, "probabilities") - expected).max() < 1e-5)
        time.sleep(3 * WATCHED.check_interval_s)
        assert is_ready(server)
        assert [event.kind for event in server.events()] == ["started"]


def test_the_status_does_not_need_the_events(repository: Path) -> None:
    with watched(repository) as server:
        events = events_file(server.state.grpc_port)
        events.unlink()
        events.mkdir()
        until(lambda: get(server, "/status")[1].get("events") == [])
        status, values = get(server, "/status")
        assert (status, values["ready"], len(values["models"])) == (200, True, 3)
        events.rmdir()


def test_two_servers_with_ports_of_their_own_have_two_supervisors(repository: Path) -> None:
    command = [sys.executable, "-m", "defensemble", "serve", "--repository", str(repository), "--detach"]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", 8003))
            taken.listen()
        except OSError:
            pass  # another program has the port
        printed = subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S, text=True).stdout
        try:
            url = re.findall(r"^  supervisor  (\S+) ", printed, re.MULTILINE)[0]
            assert urllib3.request("GET", f"{url}/healthz", retries=False).status == 200, "it answers once its URL is printed"
            assert find_state(None, repository).supervisor_port != 8003
        finally:
            stop_server(repository=repository)


def test_a_supervisor_that_is_killed_is_started_again(repository: Path) -> None:
    with watched(repository) as server:
        os.kill(supervisor_of(server), signal.SIGKILL)
        assert event(server, "supervisor_ended").facts["status"] == -signal.SIGKILL
        until(lambda: is_ready(server))
        assert server_status(server.state).restarts == 0


def test_an_edit_and_an_unload_are_no_failures(repository: Path) -> None:
    from defensemble import Client
    from defensemble.ensembles import Ensembles

    with watched(repository) as server, Client(server.grpc_url, admin_key=server.state.admin_key) as client:
        ensembles = Ensembles(repository, client)
        for weight in (2.0, 3.0):
            ensembles.weight("ensemble", {"alpha": weight})
        ensembles.average("ensemble", "logits")
        ensembles.remove("ensemble", ["beta"])
        shown = {model["name"]: model for model in get(server, "/status")[1]["models"]}
        until(lambda: {model["name"] for model in get(server, "/status")[1]["models"]} == {"alpha", "ensemble"})
        until(lambda: is_ready(server))
        assert [event.kind for event in server.events()] == ["started"]
    assert set(shown["ensemble"]["checks"]) == {"correct"}


def test_a_server_whose_only_ensemble_is_not_served_is_not_ready(repository: Path) -> None:
    (repository / "alpha/1/model.onnx").write_bytes(b"damaged")
    with serve(repository, WATCHED) as server:
        assert server.models == ["beta"]
        until(lambda: "alpha" in str(get(server, "/readyz")[1]))
        status, answer = get(server, "/readyz")
        shown = get(server, "/status")[1]
    assert (status, answer["ready"]) == (503, False)
    (reason,) = answer["reasons"]
    assert reason.startswith("ensemble ")
    assert [(model["name"], model["state"]) for model in shown["models"]] == [("beta", "correct")]


def test_no_answer_contains_the_key(repository: Path) -> None:
    with watched(repository) as server:
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            assert server.state.admin_key not in str(get(server, path))
