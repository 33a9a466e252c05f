"""A real Triton from start to end: what it answers, what it refuses, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_server import (
    PortError,
    RepositoryError,
    RuntimeMissingError,
    ServeOptions,
    Server,
    ServerError,
    StateError,
    find_state,
    read_states,
    serve,
    start_server,
    stop_server,
)
from defensemble_server.readiness import fixed_images
from defensemble_server.serving import _new_log
from defensemble_server.state import state_file
from tests import tiny

FREE = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    folder = tiny.write_repository(tmp_path / "repository")
    yield folder
    deadline = time.monotonic() + 20
    while (left := tiny.leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def ask(server: Server, model: str, images: tiny.Array, output: str) -> tiny.Array:
    body = {
        "inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
        "outputs": [{"name": output}],
    }
    answer = urllib3.request("POST", f"{server.http_url}/v2/models/{model}/infer", json=body)
    assert answer.status == 200, answer.data
    got = answer.json()["outputs"][0]
    values: tiny.Array = np.array(got["data"], np.float32).reshape(got["shape"])
    return values


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_ensemble_equals_numpy_mean_of_members(tmp_path: Path, average: str) -> None:
    folder = tiny.write_repository(tmp_path / "r", {"a": 1, "b": 2, "c": 3}, average=average, weight={"b": 2.5})
    share = np.array([1, 2.5, 1]) / 4.5
    images = tiny.images(7)
    votes = np.stack([tiny.logits(seed, images) for seed in (1, 2, 3)])
    members = tiny.softmax(votes)
    mixture = np.tensordot(share, members, 1)
    expected = mixture if average == "probabilities" else tiny.softmax(np.tensordot(share, votes, 1))

    def entropy(p: tiny.Array) -> tiny.Array:
        value: tiny.Array = -(p * np.log(p)).sum(-1)
        return value

    with serve(folder, FREE) as server:
        assert np.abs(ask(server, "ensemble", images, "probabilities") - expected).max() < 1e-6
        assert np.abs(ask(server, "ensemble", images, "member_probabilities") - members.transpose(1, 0, 2)).max() < 1e-6
        assert np.abs(ask(server, "ensemble", images, "entropy")[:, 0] - entropy(expected)).max() < 1e-5
        information = entropy(mixture) - np.tensordot(share, entropy(members), 1)
        assert np.abs(ask(server, "ensemble", images, "mutual_information")[:, 0] - information).max() < 1e-5


def test_uncertainty_is_computed_only_when_asked_for(triton: Server) -> None:
    name = next(model for model in triton.models if model.startswith("uncertainty_"))

    def runs() -> int:
        stats = urllib3.request("GET", f"{triton.http_url}/v2/models/{name}/stats").json()
        return int(stats["model_stats"][0]["inference_count"])

    before = runs()
    ask(triton, "ensemble", tiny.images(2), "probabilities")
    assert runs() == before
    ask(triton, "ensemble", tiny.images(2), "entropy")
    assert runs() == before + 2


def test_labels_are_answered_by_the_classification_extension(triton: Server) -> None:
    images = tiny.images(1)
    body = {
        "inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    }
    answer = urllib3.request("POST", f"{triton.http_url}/v2/models/ensemble/infer", json=body).json()
    assert {entry.split(":")[2] for entry in answer["outputs"][0]["data"]} == set(tiny.CLASSES)


@pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/alpha/unload", "/v2/logging", "/v2/trace/setting"])
def test_editing_apis_need_the_admin_key(triton: Server, path: str) -> None:
    assert urllib3.request("POST", triton.http_url + path, json={}).status == 403


def test_shared_memory_needs_the_admin_key_and_configurations_do_not(triton: Server) -> None:
    assert urllib3.request("GET", f"{triton.http_url}/v2/systemsharedmemory/status").status == 403
    key = {"x-admin-key": triton.state.admin_key}
    assert urllib3.request("POST", f"{triton.http_url}/v2/repository/index", json={}, headers=key).status == 200
    config = urllib3.request("GET", f"{triton.http_url}/v2/models/alpha/config").json()
    assert config["max_batch_size"] == 8


def test_front_ends_of_clouds_are_off(triton: Server) -> None:
    for path in ("/models", "/ping", "/invocations", "/predict"):
        assert urllib3.request("GET", triton.http_url + path).status == 404


def test_nothing_is_left_after_a_normal_stop(repository: Path) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    with serve(repository, FREE) as server:
        state = server.state
        assert stat.S_IMODE(os.stat(Path(os.environ["XDG_STATE_HOME"]) / f"defensemble/servers/{state.grpc_port}.json").st_mode) == 0o600
        assert find_state(state.grpc_port) == state
        assert sorted(server.models) == sorted(path.name for path in repository.iterdir())
    assert tiny.leftovers(repository) == []
    assert all(port_is_free(port) for port in (state.http_port, state.grpc_port, state.metrics_port))
    assert set(os.listdir("/dev/shm")) <= shared_memory
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


def test_nothing_is_left_after_the_parent_was_killed(repository: Path) -> None:
    with child(repository) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().split()[0])
        parent.kill()
    assert gone_within(repository, 20)
    assert port_is_free(port)
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


def test_interrupt_during_start_leaves_nothing(repository: Path) -> None:
    with child(repository) as parent:
        deadline = time.monotonic() + 60
        while not tiny.leftovers(repository) and time.monotonic() < deadline:
            time.sleep(0.002)
        parent.send_signal(signal.SIGINT)
        parent.wait(30)
    assert gone_within(repository, 20)


def gone_within(repository: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while tiny.leftovers(repository):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_detached_server_outlives_the_context_until_it_is_stopped(repository: Path) -> None:
    with serve(repository, FREE) as server:
        server.detach()
    assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all()
    assert stop_server(server.state.grpc_port).repository == str(repository)
    assert tiny.leftovers(repository) == []
    with pytest.raises(StateError, match="no server of ours runs on gRPC port"):
        stop_server(server.state.grpc_port)
    server.wait()


def test_a_request_in_flight_is_answered_while_the_server_drains(repository: Path) -> None:
    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=5)) as server:
        with socket.create_connection(("127.0.0.1", server.state.http_port)) as connection:
            images = tiny.images(1)
            body = json.dumps(
                {"inputs": [{"name": "images", "shape": [1, 1, 4, 4], "datatype": "FP32", "data": images.ravel().tolist()}]}
            ).encode()
            head = f"POST /v2/models/ensemble/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            server.detach()
            os.kill(server.triton_pid, signal.SIGTERM)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert b"200 OK" in answer.splitlines()[0]
        assert b"probabilities" in answer
        server.wait()


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(PortError, match=rf"grpc port {port} on 127.0.0.1 cannot be used.*--grpc-port"),
            serve(repository, ServeOptions(http_port=0, grpc_port=port, metrics_port=0)),
        ):
            pytest.fail("it must not start")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org"])
def test_the_old_core_refuses_a_public_address(host: str) -> None:
    with pytest.raises(PortError, match="--expose-outdated-server"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, expose_outdated_server=True).host == host


@pytest.mark.parametrize("key", ["short", "with space in the middle of it", "x" * 300, "quite-long-but,with=signs"])
def test_admin_keys_that_triton_would_misread_are_refused_without_showing_them(key: str) -> None:
    with pytest.raises(ServerError) as caught:
        ServeOptions(admin_key=key)
    assert key not in str(caught.value)


def test_broken_models_are_named_and_the_others_serve(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3, "delta": 4, "epsilon": 5, "zeta": 6}, ensemble=None)
    (repository / "stray").mkdir()
    (repository / "gamma/config.pbtxt").write_text('name: "gamma"\nbackend: [[')
    damaged = repository / "delta/1/model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    without_digest(repository, "epsilon").write_bytes(b"this is no ONNX file")
    unfit = repository / "zeta/config.pbtxt"
    unfit.write_text(unfit.read_text().replace("dims: 3\n", "dims: 4\n"))
    with serve(repository, FREE) as server:
        assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all()
        problems = dict(server.problems)
    assert set(problems) == {"stray", "gamma", "delta", "epsilon", "zeta"}
    assert "stray folder" in problems["stray"]
    assert "gamma/config.pbtxt: not a valid model configuration: 2:" in problems["gamma"]
    assert "was changed or damaged" in problems["delta"]
    assert "model.onnx" in problems["epsilon"]
    assert "logits" in problems["zeta"]


def without_digest(repository: Path, name: str) -> Path:
    """Take the digest out of a member's configuration, as for a model of somebody else's; returns its model file."""
    from defensemble_export import config_from_pbtxt, pbtxt_from_config

    path = repository / name / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), name)
    del config.parameters["sha256.1"]
    path.write_bytes(pbtxt_from_config(config))
    return repository / name / "1/model.onnx"


def test_an_ensemble_over_a_broken_member_is_not_served(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3}, ensemble="other")
    (repository / "alpha/config.pbtxt").unlink()
    with serve(repository, FREE) as server:
        assert server.problems["ensemble"] == "its step 'alpha' cannot be served"
        assert "other" in server.models


def test_a_changed_weight_loads_as_well_as_a_right_one_and_is_caught_by_its_digest(repository: Path) -> None:
    (repository / "beta/1/model.onnx").write_bytes(tiny.linear_onnx(99))
    with serve(repository, FREE) as server:
        assert "SHA-256" in server.problems["beta"]
        assert server.problems["ensemble"] == "its step 'beta' cannot be served"


def test_an_average_that_answers_otherwise_than_its_configuration_says_is_not_served(repository: Path) -> None:
    from defensemble_export import Ensemble, Vote, average_onnx

    name = next(path.name for path in repository.iterdir() if path.name.startswith("average_"))
    file = without_digest(repository, name)
    file.write_bytes(average_onnx(Ensemble("e", (Vote("alpha", 1, 9.0), Vote("beta"))), 3))
    with serve(repository, FREE) as server:
        assert "differs by" in server.problems["ensemble"]
        assert "from the average (probabilities) of its members" in server.problems["ensemble"]
        assert "ensemble" not in server.models
        answer = urllib3.request("POST", f"{server.http_url}/v2/models/ensemble/infer", json={"inputs": []})
        assert answer.status != 200, "it was unloaded"
        assert np.isfinite(ask(server, "alpha", tiny.images(1), "logits")).all()


def test_two_starts_on_the_same_ports_end_with_one_server(repository: Path) -> None:
    with serve(repository, FREE) as first:
        ports = first.state.http_port, first.state.grpc_port, first.state.metrics_port
    options = ServeOptions(http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2], drain_s=1)
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(start_server, repository, options) for _ in range(2)]
    errors = [start.exception() for start in starts]
    servers = [start.result() for start in starts if start.exception() is None]
    try:
        assert {type(error) for error in errors} == {type(None), PortError}, errors
        (winner,) = servers
        assert find_state(ports[1]) == winner.state
        assert np.isfinite(ask(winner, "ensemble", tiny.images(1), "probabilities")).all()
    finally:
        for server in servers:
            server.stop()


def test_a_log_that_another_start_removes_meanwhile_does_no_harm(own_state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = own_state_folder / "defensemble/logs"
    logs.mkdir(parents=True, exist_ok=True)
    for number in range(30):
        (logs / f"triton-{number}.log").touch()
    stat = Path.stat

    def vanishing(path: Path, **options: bool) -> os.stat_result:
        if path.suffix == ".log":
            path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", vanishing)
    assert _new_log(4711).name == "triton-4711.log"


@pytest.mark.parametrize("pid", [-1, 0, 1, True, None, 1.5, "12"])
def test_a_state_file_by_another_hand_never_leads_to_a_signal(pid: object, own_state_folder: Path) -> None:
    path = state_file(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"pid": pid, "started": None, "runtime": "embedded", "host": "127.0.0.1", "http_port": 1, "grpc_port": 1, "metrics_port": 1}
    path.write_text(json.dumps({**values, "repository": "r", "admin_key": "k", "log": "l"}))
    try:
        with pytest.raises(StateError, match=r"1\.json is damaged"):
            stop_server(1)
        assert 1 not in [state.grpc_port for state in read_states()]
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("libc", "told"),
    [(("glibc", "2.31"), "needs glibc 2.35 or newer, this system has 2.31"), (("", ""), "needs glibc, this system has another C library")],
)
def test_a_platform_that_triton_does_not_run_on_ends_the_start(
    repository: Path, monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], told: str
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(RuntimeMissingError, match=told), serve(repository, FREE):
        pytest.fail("it must not start")


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="does not exist"), serve(tmp_path / "none", FREE):
        pytest.fail("it must not start")
    with pytest.raises(RepositoryError, match="is empty"), serve(tmp_path, FREE):
        pytest.fail("it must not start")
    (tmp_path / "stray").mkdir()
    with pytest.raises(RepositoryError, match=r"no model in .* can be served"), serve(tmp_path, FREE):
        pytest.fail("it must not start")


def test_a_profile_takes_its_own_configuration_where_a_model_has_one(repository: Path) -> None:
    text = (repository / "alpha/config.pbtxt").read_text()
    (repository / "alpha/configs").mkdir()
    (repository / "alpha/configs/small.pbtxt").write_text(text.replace("max_batch_size: 8", "max_batch_size: 9"))
    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, profile="small")) as server:
        config = urllib3.request("GET", f"{server.http_url}/v2/models/alpha/config").json()
        assert config["max_batch_size"] == 9
        assert urllib3.request("GET", f"{server.http_url}/v2/models/beta/config").json()["max_batch_size"] == 8


def test_two_versions_stay_loaded_and_the_pinned_one_votes(repository: Path) -> None:
    from defensemble_export import Member, repository_plan, write_plan

    new = Member("alpha", tiny.linear_onnx(7), tiny.SHAPE, 3, tiny.CLASSES, "digest")
    write_plan(repository, repository_plan(repository, [new], ensemble=None, replace=True))
    images = tiny.images(3)
    expected = (tiny.softmax(tiny.logits(1, images)) + tiny.softmax(tiny.logits(2, images))) / 2
    with serve(repository, FREE) as server:
        assert np.abs(ask(server, "ensemble", images, "probabilities") - expected).max() < 1e-6
        assert np.abs(ask(server, "alpha/versions/1", images, "logits") - tiny.logits(1, images)).max() < 1e-5
        assert np.abs(ask(server, "alpha/versions/2", images, "logits") - tiny.logits(7, images)).max() < 1e-5


def test_fixed_images_are_the_same_everywhere() -> None:
    images = fixed_images((3, 5, 7))
    assert images.shape == (1, 3, 5, 7)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() < 1
    assert len(np.unique(images)) > 100


def test_a_copied_repository_serves_as_well(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    with serve(copy, FREE) as server:
        assert server.problems == {}
