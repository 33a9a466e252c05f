"""A real Triton: that it answers correctly, and what its folders and state files may look like."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_repository.configs import OUTPUTS
from defensemble_repository.names import AVERAGING_NAME
from defensemble_server import (
    NotServableError,
    PortError,
    RuntimeMissingError,
    ServeOptions,
    Server,
    StateError,
    read_states,
    serve,
    stop_server,
)
from defensemble_server.errors import CrashError
from defensemble_server.process.launch import command_line
from defensemble_server.process.state import find_state, state_file
from defensemble_server.readiness import fixed_images
from defensemble_server.serve import _new_log, start_server
from tests.support import tiny
from tests.support.calls import FREE, ask
from tests.support.facts import raises


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_ensemble_equals_numpy_mean_of_members(tmp_path: Path, average: str) -> None:
    folder = tiny.write_repository(tmp_path / "r", {"a": 1, "b": 2, "c": 3}, average=average, weight={"b": 2.5})
    share = np.array([1, 2.5, 1]) / 4.5
    images = tiny.images(7)
    member_logits = np.stack([tiny.logits(seed, images) for seed in (1, 2, 3)])
    members = tiny.softmax(member_logits)
    mixture = np.tensordot(share, members, 1)
    expected = mixture if average == "probabilities" else tiny.softmax(np.tensordot(share, member_logits, 1))

    def entropy(p: tiny.Array) -> tiny.Array:
        value: tiny.Array = -(p * np.log(p)).sum(-1)
        return value

    with serve(folder, FREE) as server:
        assert np.abs(ask(server, "ensemble", images, "probabilities") - expected).max() < 1e-6
        assert np.abs(ask(server, "ensemble", images, "member_probabilities") - members.transpose(1, 0, 2)).max() < 1e-6
        assert np.abs(ask(server, "ensemble", images, "entropy")[:, 0] - entropy(expected)).max() < 1e-5
        information = entropy(mixture) - np.tensordot(share, entropy(members), 1)
        assert np.abs(ask(server, "ensemble", images, "mutual_information")[:, 0] - information).max() < 1e-5


@pytest.mark.parametrize("outputs", [("probabilities",), ("entropy", "mutual_information"), ()])
def test_one_model_averages_and_only_what_is_asked_for_is_sent(triton: Server, outputs: tuple[str, ...]) -> None:
    assert len([name for name in triton.models if AVERAGING_NAME.fullmatch(name)]) == 1
    images = tiny.images(2)
    body = {
        "inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
        "outputs": [{"name": name} for name in outputs],
    }
    answer = urllib3.request("POST", f"{triton.http_url}/v2/models/ensemble/infer", json=body).json()
    assert {tensor["name"] for tensor in answer["outputs"]} == set(outputs or OUTPUTS)


def test_labels_are_answered_by_the_classification_extension(triton: Server) -> None:
    images = tiny.images(1)
    body = {
        "inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3}}],
    }
    answer = urllib3.request("POST", f"{triton.http_url}/v2/models/ensemble/infer", json=body).json()
    assert {entry.split(":")[2] for entry in answer["outputs"][0]["data"]} == set(tiny.CLASSES)


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
    ("libc", "facts"),
    [(("glibc", "2.31"), "glibc 2.35 | 2.31"), (("", ""), "glibc | C library")],
)
def test_a_platform_that_triton_does_not_run_on_ends_the_start(
    repository: Path, monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], facts: str
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with raises(RuntimeMissingError, facts), serve(repository, FREE):
        pytest.fail("it must not start")


def test_no_model_at_all(tmp_path: Path) -> None:
    with raises(NotServableError, "none | not exist"), serve(tmp_path / "none", FREE):
        pass
    with pytest.raises(NotServableError, match="empty"), serve(tmp_path, FREE):
        pytest.fail("it must not start")
    (tmp_path / "stray").mkdir()
    with raises(NotServableError, f"no model | {tmp_path}"), serve(tmp_path, FREE):
        pytest.fail("it must not start")


def test_a_profile_takes_its_own_configuration_where_a_model_has_one(repository: Path) -> None:
    text = (repository / "alpha/config.pbtxt").read_text()
    (repository / "alpha/configs").mkdir()
    (repository / "alpha/configs/small.pbtxt").write_text(text.replace("max_batch_size: 8", "max_batch_size: 9"))
    with serve(repository, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, profile="small")) as server:
        config = urllib3.request("GET", f"{server.http_url}/v2/models/alpha/config").json()
        assert config["max_batch_size"] == 9
        assert urllib3.request("GET", f"{server.http_url}/v2/models/beta/config").json()["max_batch_size"] == 8


def test_two_versions_stay_loaded_and_the_pinned_one_is_a_member(repository: Path) -> None:
    tiny.write_second_version(repository, "alpha", 7)
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


def test_an_interrupted_edit_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "r", {"a": 1})
    messages: list[str] = []
    with serve(folder, FREE, on_progress=messages.append):
        assert [line for line in messages if "pending-edit.json" in line] == []
    (folder / "pending-edit.json").write_text("{}")
    with serve(folder, FREE, on_progress=messages.append) as server:
        assert "ensemble" in server.models, "the folder holds a whole state: it is served"
    (line,) = [line for line in messages if "pending-edit.json" in line]
    assert "`defensemble ensemble show`" in line


def test_averages_that_no_ensemble_uses_are_not_loaded(tmp_path: Path) -> None:
    from defensemble.ensembles import Ensembles

    folder = tiny.write_repository(tmp_path / "r", {"a": 1, "b": 2})
    Ensembles(folder).weight("ensemble", {"a": 3.0})
    messages: list[str] = []
    with serve(folder, FREE, on_progress=messages.append) as server:
        averaging = [name for name in server.models if AVERAGING_NAME.fullmatch(name)]
        assert len(averaging) == 1
        assert server.problems == {}
    assert len(list(folder.glob("average_*"))) == 2
    (line,) = [line for line in messages if "not loaded: 1 averaging model " in line]
    assert "`defensemble ensemble prune`" in line


def _crash_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    commands = iter([["/bin/sh", "-c", "kill -SEGV $$"]] * times)
    monkeypatch.setattr(sys.modules[start_server.__module__], "command_line", lambda *given: next(commands, None) or command_line(*given))


def test_triton_that_crashes_while_it_starts_is_started_again(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _crash_first(monkeypatch, 2)
    messages: list[str] = []
    with serve(repository, FREE, on_progress=messages.append) as server:
        assert np.isfinite(ask(server, "ensemble", tiny.images(1), "probabilities")).all()
    assert sum("crashed" in line for line in messages) == 2


def test_triton_that_crashes_at_each_start_is_an_error_with_the_signal(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _crash_first(monkeypatch, 10**6)
    others = read_states()
    with raises(CrashError, "SIGSEGV"), serve(repository, FREE):
        pass
    assert read_states() == others
