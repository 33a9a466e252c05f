"""`defensemble serve` over time: restarts, crashes that `--status` still shows, and starts that fail."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from defensemble_server import ServerState, read_states, server_status, stop_server
from defensemble_server.process.state import find_state
from tests.support import tiny
from tests.support.calls import gone_within, without_digest, write_slow_model
from tests.support.command_line import TIMEOUT_S, address_from, error_message, run, start, succeed
from tests.support.facts import assert_facts

pytestmark = pytest.mark.slow


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """A valid repository; its servers are stopped."""
    folder = tiny.write_repository(tmp_path / "repository")
    yield folder
    for state in read_states():
        if state.repository == str(folder):
            stop_server(state.grpc_port)
    assert gone_within(folder, 20)


def detached(repository: Path, *options: str) -> ServerState:
    output = succeed("serve", "--repository", repository, "--free-ports", "--drain", "1", "--detach", *options, cwd=repository.parent)
    return find_state(address_from(output).grpc_port)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status_of(repository: Path, *options: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(
        run("serve", "--repository", repository, "--status", "--json", *options, cwd=repository.parent).stdout
    )
    return status


def test_stop_ends_the_server_of_the_repository(repository: Path, tmp_path: Path) -> None:
    other = tiny.write_repository(tmp_path / "other")
    state = detached(repository)
    error = error_message(run("serve", "--repository", "other", "--stop", cwd=tmp_path))
    assert_facts(error, f"no server of other | {state.grpc_port} ({repository})")  # other tests' servers may run, too
    assert state in read_states()
    assert str(repository) in succeed("serve", "--repository", "repository", "--stop", cwd=tmp_path)
    assert state not in read_states()
    assert tiny.leftovers(other) == []


def test_a_restart_is_printed_and_shown_by_status_and_doctor(repository: Path) -> None:
    with start("serve", "--repository", repository, "--free-ports", "--drain", "1", cwd=repository.parent) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = address_from("".join(process.stdout.readline() for _ in range(6)))
            state = find_state(address.grpc_port)
            (server,) = status_of(repository)["servers"]
            assert (server["state"], server["restarts"], server["last_fault"]) == ("running", 0, None)
            os.kill(server["triton_pid"], signal.SIGSEGV)
            assert "SIGSEGV" in process.stderr.readline()
            assert "restarted" in process.stderr.readline()
            (server,) = status_of(repository)["servers"]
            assert (server["state"], server["restarts"], server["last_fault"]["event"]) == ("running", 1, "died")
            output = succeed("serve", "--status", "--grpc-port", str(state.grpc_port), cwd=repository.parent)
            assert "SIGSEGV" in output
            assert re.search(r"^  restarts +1$", output, re.MULTILINE)
            assert state.admin_key not in output
            doctor = run("doctor", cwd=repository.parent).stdout
            assert re.search(rf"^WARN  server {state.grpc_port} .*1 restart.*SIGSEGV", doctor, re.MULTILINE)
            process.send_signal(signal.SIGINT)
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()


def test_status_shows_since_when_a_server_is_restarting(repository: Path) -> None:
    state = detached(repository)
    moved = repository.rename(repository.with_name("elsewhere"))
    try:
        os.kill(server_status(state).pid, signal.SIGKILL)
        wait_until(lambda: server_status(state).restarting_since)
    finally:
        os.kill(state.pid, signal.SIGSTOP)
        moved.rename(repository)
    try:
        (server,) = status_of(repository)["servers"]
        assert server["state"] == "restarting"
        assert server["restarting_since"] == pytest.approx(time.time(), abs=TIMEOUT_S)
        shown = succeed("ensemble", "show", "--repository", repository, cwd=repository.parent)
        assert "restarting since" in " ".join(shown.split())
    finally:
        os.kill(state.pid, signal.SIGCONT)
    wait_until(lambda: server_status(state).restarts == 1)


def test_a_dead_server_is_shown_until_the_next_start(repository: Path) -> None:
    state = detached(repository, "--no-restart")
    os.kill(server_status(state).pid, signal.SIGKILL)
    wait_until(lambda: not state.alive)
    done = run("serve", "--repository", repository, "--status", cwd=repository.parent)
    assert_facts(error_message(done), f"no server | {repository}")
    assert "SIGKILL" in done.stdout
    assert state.log in done.stdout
    (dead,) = status_of(repository)["dead"]
    assert dead["grpc_port"] == state.grpc_port
    shown = run("ensemble", "show", "--repository", repository, cwd=repository.parent)
    assert shown.returncode == 0
    assert "SIGKILL" in shown.stderr
    assert re.search(rf"^WARN  server {state.grpc_port} .*SIGKILL", run("doctor", cwd=repository.parent).stdout, re.MULTILINE)
    detached(repository)
    assert status_of(repository)["dead"] == []


def test_a_crash_loop_ends_serve_and_prints_the_end_of_the_log(repository: Path) -> None:
    with start("serve", "--repository", repository, "--free-ports", "--drain", "1", cwd=repository.parent) as process:
        try:
            assert process.stdout is not None
            address = address_from("".join(process.stdout.readline() for _ in range(6)))
            state = find_state(address.grpc_port)
            repository.rename(repository.with_name("elsewhere"))
            os.kill(server_status(state).pid, signal.SIGKILL)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 1
    assert errors.count("the restart failed") == 5
    assert f"status 1; see {state.log}" in errors
    assert "Its last lines:" in errors


@pytest.mark.parametrize(("options", "facts"), [((), "no ensemble is served"), (("--strict",), "not served: beta, ensemble")])
def test_a_start_without_the_ensemble_fails_and_leaves_nothing(repository: Path, options: tuple[str, ...], facts: str) -> None:
    without_digest(repository, "beta").write_bytes(b"this is no ONNX file")
    done = run("serve", "--repository", repository, "--free-ports", "--drain", "1", "--detach", *options, cwd=repository.parent)
    assert facts in error_message(done)
    assert "NOT served: ensemble" in done.stderr
    assert "ready" not in done.stdout
    assert tiny.leftovers(repository) == []
    assert str(repository) not in [state.repository for state in read_states()]


def test_a_start_fails_if_the_only_ensemble_cannot_be_read(repository: Path) -> None:
    with (repository / "ensemble/config.pbtxt").open("a") as file:
        file.write("nonsense [[")
    assert "no ensemble is served" in error_message(
        run("serve", "--repository", repository, "--free-ports", "--detach", cwd=repository.parent)
    )


def test_strict_requires_all_models_and_the_default_one_ensemble(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3}, ensemble=None)
    without_digest(repository, "gamma").write_bytes(b"this is no ONNX file")
    detached(repository)
    succeed("serve", "--repository", repository, "--stop", cwd=repository.parent)
    assert "gamma" in error_message(run("serve", "--repository", repository, "--free-ports", "--strict", cwd=repository.parent))


def test_a_repository_with_averaging_models_only_is_refused(repository: Path) -> None:
    for path in repository.iterdir():
        if not path.name.startswith(("average_", "uncertainty_")):
            path.rename(repository.parent / path.name)
    assert "averaging models" in error_message(run("serve", "--repository", repository, "--free-ports", cwd=repository.parent))


def write_slow_to_load(repository: Path) -> None:
    write_slow_model(repository)
    (repository / "slow/warmup").mkdir()
    np.array([10**10]).tofile(repository / "slow/warmup/rounds")
    with (repository / "slow/config.pbtxt").open("a") as file:
        file.write(
            'model_warmup { name: "w" batch_size: 1 '
            'inputs { key: "rounds" value { data_type: TYPE_INT64 dims: 1 input_data_file: "rounds" } } }\n'
        )


def write_slow_to_answer(repository: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["held", "zero"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros((), np.float32), "zero")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["first"]),
            helper.make_node("Loop", ["rounds", "", "first"], ["logits"], body=body),
        ],
        "slow",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *tiny.SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(tiny.weights(1), "weights"), numpy_helper.from_array(np.array(10**10), "rounds")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    without_digest(repository, "alpha").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("write", [write_slow_to_load, write_slow_to_answer])
def test_a_start_ends_at_its_timeout(repository: Path, write: Callable[[Path], None]) -> None:
    write(repository)
    begin = time.monotonic()
    error = error_message(run("serve", "--repository", repository, "--free-ports", "--start-timeout", "4", cwd=repository.parent))
    assert time.monotonic() - begin < 20
    assert "4 s" in error
    assert tiny.leftovers(repository) == []
