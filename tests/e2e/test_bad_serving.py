"""Errors of serve: one error message, an exit status that is not 0, and no server left running."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_ops.library import NATIVE
from defensemble_server import read_states, stop_server
from defensemble_server.process.state import state_file
from defensemble_server.runtime.backend_build import FLAGS, find_compiler
from tests.support import tiny
from tests.support.broken import content, fill, python_path, small_disk, without_programs
from tests.support.calls import processor_ticks, write_slow_model
from tests.support.checkout import ROOT
from tests.support.command_line import TIMEOUT_S, address_from, environment, error_message, run, start, succeed
from tests.support.facts import assert_each, assert_facts

BACKEND_TESTS = ROOT / "tests/server/backend"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """A valid repository; the servers that a test leaves are stopped."""
    folder = tiny.write_repository(tmp_path / "repository")
    yield folder
    for state in read_states():
        if state.repository == str(folder):
            stop_server(state.grpc_port)
    deadline = time.monotonic() + 20
    while (leftovers := tiny.leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert leftovers == []


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["nowhere"], "{folder}/nowhere | not exist | `defensemble export`"),
        (["empty"], "{folder}/empty | is empty | `defensemble export CHECKPOINT"),
        (["file"], "{folder}/file | is a file"),
        (
            ["stray"],
            "no model | {folder}/stray | notes | config.pbtxt",
        ),
        (["garbled"], "{folder}/garbled/alpha/config.pbtxt:2: | 2:"),
        (["damaged"], "alpha | {folder}/damaged/alpha/1/model.onnx | version 1 | SHA-256"),
        (["good", "--admin-key-file", "nowhere"], "nowhere | does not exist"),
        (
            ["good", "--admin-key-file", "short.key"],
            "16 to 256 | 6",
        ),
        (["good", "--http-port", "70000"], "--http-port | 70000 | 65535"),
        (["good", "--host", "0.0.0.0"], "CVE-2025-23310"),
        (["good", "--profile", "../x"], "profile | letters | '../x'"),
        (["--stop", "--grpc-port", "1"], "gRPC port 1 | running"),
    ],
)
def test_serve_refuses_bad_repositories_and_options(tmp_path: Path, arguments: list[str], facts: str) -> None:
    write_bad_repositories(tmp_path)
    before = content(tmp_path)
    positional = () if arguments[0].startswith("--") else ("--repository",)
    free_ports = () if "--http-port" in arguments else ("--free-ports",)
    error = error_message(run("serve", *free_ports, *positional, *arguments, cwd=tmp_path))
    assert_facts(error, facts.format(folder=tmp_path))
    assert "hunter" not in error, "a key must not be shown"
    assert content(tmp_path) == before
    assert tiny.leftovers(tmp_path / arguments[0]) == []


def write_bad_repositories(folder: Path) -> None:
    tiny.write_repository(folder / "good")
    (folder / "empty").mkdir()
    (folder / "file").write_text("not a folder")
    (folder / "stray/notes").mkdir(parents=True)
    for name in ("garbled", "damaged"):
        tiny.write_repository(folder / name, {"alpha": 1}, ensemble=None)
    (folder / "garbled/alpha/config.pbtxt").write_text('name: "alpha"\nbackend: [[')
    model = folder / "damaged/alpha/1/model.onnx"
    model.write_bytes(model.read_bytes()[:-40])
    (folder / "short.key").write_text("hunter\n")


def test_serve_reports_models_that_it_cannot_serve_and_serves_the_others(repository: Path) -> None:
    tiny.write_repository(repository, {"gamma": 3}, ensemble=None)
    (repository / "gamma/config.pbtxt").write_text('name: "gamma"\nbackend: [[')
    (repository / "notes").mkdir()
    done = run("serve", "--repository", repository, "--detach", "--free-ports", "--drain", "1", cwd=repository.parent)
    assert done.returncode == 0, done.stderr
    assert "notes" in done.stderr
    assert "NOT served: gamma: " in done.stderr
    address = address_from(done.stdout)
    np.save(repository.parent / "x.npy", tiny.images(3))
    assert "ensemble: 3 images" in succeed("predict", "--url", address.http, "x.npy", cwd=repository.parent)
    assert "'gamma'" in error_message(run("predict", "--url", address.http, "x.npy", "--model", "gamma", cwd=repository.parent))


def test_serve_rejects_a_taken_port(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--http-port", "0", "--grpc-port", str(port), "--metrics-port", "0", "--supervisor-port", "0")
        error = error_message(run("serve", "--repository", repository, *options, cwd=repository.parent))
    assert_facts(error, f"grpc port {port} | 127.0.0.1 | Address already in use | --grpc-port")


@pytest.mark.parametrize(
    ("runtime", "facts"),
    [
        ("path", "`tritonserver` | PATH | --runtime embedded"),
        ("docker", "`docker` | PATH | --runtime embedded"),
        (
            "embedded",
            "C++ compiler | $CXX, c++, g++, clang++ | PATH | ziglang",
        ),
    ],
)
def test_serve_reports_a_missing_program(repository: Path, runtime: str, facts: str) -> None:
    changes = without_programs(repository.parent / "bin")
    done = run("serve", "--repository", repository, "--free-ports", "--runtime", runtime, cwd=repository.parent, env=environment(**changes))
    assert_facts(error_message(done), facts)
    assert list((repository.parent / "bin").iterdir()) == [], "no part of a build is left"


def test_serve_reports_a_compiler_that_does_not_run(repository: Path) -> None:
    changes = {**without_programs(repository.parent / "bin"), "CXX": "/nowhere/c++"}
    error = error_message(run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=environment(**changes)))
    assert_facts(error, "C++ compiler | CXX | `/nowhere/c++`")


def test_serve_reports_a_full_disk_of_its_state_folder(repository: Path) -> None:
    with small_disk(repository.parent / "disk") as disk:
        fill(disk, leave=0)
        done = run(
            "serve",
            "--repository",
            repository,
            "--free-ports",
            "--drain",
            "1",
            cwd=repository.parent,
            env=environment(XDG_STATE_HOME=str(disk)),
        )
        error = error_message(done)
        assert re.search(rf"No space left on device: {disk}/defensemble/servers/\d+\.json", error)
        assert "XDG_STATE_HOME" in error
        assert list((disk / "defensemble/servers").iterdir()) == []


# It fills the disk immediately; a real compiler takes seconds.
QUICK_COMPILER = """#!/bin/sh
[ "$1" = --version ] && { echo "quick 1.0"; exit 0; }
while [ "$1" != -o ]; do shift; done
head -c 1000000 /dev/zero >"$2"
"""


@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_serve_reports_a_full_disk_of_the_backend_cache(repository: Path, is_real: bool) -> None:
    compiler = repository.parent / "compiler"
    compiler.write_text(QUICK_COMPILER)
    compiler.chmod(0o755)
    with small_disk(repository.parent / "disk") as disk:
        fill(disk, leave=8192)
        changes = {"XDG_CACHE_HOME": str(disk), **({} if is_real else {"CXX": str(compiler)})}
        error = error_message(run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=environment(**changes)))
        assert error.startswith(
            f"No space left on device: {disk / 'defensemble/backend'}: free some space there, or choose another place ("
        )
        assert "XDG_CACHE_HOME" in error
        assert "g++" not in error
        assert [name for name in content(disk) if "building" in name] == []


def test_demo_reports_a_missing_compiler_before_it_trains(tmp_path: Path) -> None:
    done = run("demo", "--folder", "runs", cwd=tmp_path, env=environment(**without_programs(tmp_path / "bin")))
    assert_facts(error_message(done), "C++ compiler | $CXX, c++, g++, clang++ | PATH")
    assert done.stdout == ""
    assert list(content(tmp_path)) == ["bin"]


def test_serve_reports_how_to_install_triton_without_an_index(repository: Path) -> None:
    (repository.parent / "site/pytriton").mkdir(parents=True)
    (repository.parent / "site/pytriton/__init__.py").touch()
    # A target of its own, because the real one is installed; and no index.
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null", "PIP_TARGET": str(repository.parent / "target")}
    changes = {"PYTHONPATH": python_path(repository.parent / "site"), **pip}
    done = run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=environment(**changes))
    assert "wheel" in done.stderr
    assert re.search(r"-m pip install .*triton-runtime\.txt`(.|\n)*\nERROR: ", error_message(done))


def test_serve_and_doctor_refuse_a_glibc_that_is_too_old(repository: Path) -> None:
    (repository.parent / "site").mkdir()
    (repository.parent / "site/sitecustomize.py").write_text("import platform\nplatform.libc_ver = lambda *_: ('glibc', '2.31')\n")
    env = environment(PYTHONPATH=python_path(repository.parent / "site"))
    expected = "glibc 2.35 | 2.31 | Debian 12 | Ubuntu 22.04 | --runtime docker"
    done = run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=env)
    assert done.returncode == 1
    assert_facts(error_message(done), expected)
    doctor = run("doctor", cwd=repository.parent, env=env)
    assert doctor.returncode == 1
    assert_each(re.findall("^FAIL  platform +(.*)$", doctor.stdout, re.MULTILINE), expected)


def test_serve_reports_an_outdated_onnxruntime(repository: Path) -> None:
    library = repository.parent / "site/onnxruntime/capi/libonnxruntime.so.1.14.1"
    library.parent.mkdir(parents=True)
    (library.parents[1] / "__init__.py").touch()
    env = environment(PYTHONPATH=python_path(repository.parent / "site"))
    error = error_message(run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=env))
    assert_facts(error, "libonnxruntime.so | 1.20 | pip install --upgrade")
    compiler = find_compiler()
    assert compiler is not None, "this test needs a C++ compiler: apt-get install g++"
    source = ["-I", str(NATIVE), str(BACKEND_TESTS / "too_old.cc")]
    subprocess.run([*compiler.command, *FLAGS, "-shared", *source, "-o", str(library)], check=True)
    error = error_message(run("serve", "--repository", repository, "--free-ports", cwd=repository.parent, env=env))
    assert_facts(error, f"none of the models | {repository}")
    assert_facts(error, f"ONNX Runtime 1.14.1 | '{library}' | 1.20 | pip install --upgrade")


@pytest.mark.usefixtures("no_shared_memory_left")
def test_a_second_interrupt_during_the_drain_stops_serve_immediately(repository: Path) -> None:
    write_slow_model(repository)
    with start("serve", "--repository", repository, "--free-ports", "--drain", "100", cwd=repository.parent) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            address = address_from("".join(process.stdout.readline() for _ in range(6)))
            (state,) = [state for state in read_states() if state.grpc_port == address.grpc_port]
            body = {"inputs": [{"name": "rounds", "shape": [1, 1], "datatype": "INT64", "data": [100_000_000]}]}
            with ThreadPoolExecutor(1) as pool:
                request = pool.submit(
                    urllib3.request, "POST", f"{address.http}/v2/models/slow/infer", json=body, retries=False, timeout=100
                )
                wait_for(lambda: processor_ticks(triton_of(repository)) > 50)
                process.send_signal(signal.SIGINT)
                wait_for(lambda: "draining" in Path(state.log).read_text())  # the backend drains
                for _ in range(3):
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.01)
                assert process.wait(20) == 0
                assert tiny.leftovers(repository) == []
                assert not state_file(state.grpc_port).exists()
                assert process.stderr.read() == "stopped\n"
                assert request.exception(20) is not None
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def triton_of(repository: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if f"--model-repository={repository}".encode() in entry.read_bytes():
                return int(entry.parent.name)
    raise AssertionError(f"no Triton serves {repository}")


@pytest.mark.usefixtures("no_shared_memory_left")
@pytest.mark.parametrize(("when", "number"), [("starting", signal.SIGINT), ("ready", signal.SIGINT), ("ready", signal.SIGTERM)])
def test_an_interrupted_serve_leaves_nothing(repository: Path, when: str, number: signal.Signals) -> None:
    (repository.parent / "temporary").mkdir()
    before = content(repository.parent)
    env = environment(TMPDIR=str(repository.parent / "temporary"))
    with start("serve", "--repository", repository, "--free-ports", "--drain", "1", cwd=repository.parent, env=env) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if when == "ready":
                assert process.stdout.readline().startswith("ready after ")
            deadline = time.monotonic() + TIMEOUT_S
            while not tiny.leftovers(repository):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(number)
            status = process.wait(TIMEOUT_S)
            interrupted = "Error: interrupted before the server was ready; nothing is left running\n"
            assert (status, process.stderr.read()) == ((130, interrupted) if when == "starting" else (0, "stopped\n"))
        finally:
            process.kill()
    assert tiny.leftovers(repository) == []
    assert str(repository) not in [state.repository for state in read_states()]
    assert content(repository.parent) == before
