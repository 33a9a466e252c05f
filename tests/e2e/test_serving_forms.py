"""`defensemble serve` with an admin key file, a host name, Triton from PATH, and `docker run`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from defensemble_server import read_states, stop_server
from defensemble_server.process.state import find_state
from defensemble_server.runtime.find import Runtime, find_runtime
from tests.support import tiny
from tests.support.calls import closed_within, listening_sockets
from tests.support.command_line import Address, address_from, environment, error_message, run, succeed
from tests.support.facts import assert_facts

KEY = "0123456789abcdef-of-a-test"
# A substitute for Docker: it parses the arguments of `docker run`, and runs the Triton of this machine instead of a container.
DOCKER = """#!{python}
import os, sys
words = sys.argv[1:]
start = words.index("tritonserver")
ours, theirs = words[:start], words[start + 1:]
assert ours[:3] == ["run", "--rm", "--init"], ours
published = dict(reversed(word.removeprefix("--publish=127.0.0.1:").split(":")) for word in ours if word.startswith("--publish="))
(volume,) = [word.removeprefix("--volume=").removesuffix(":/models:ro") for word in ours if word.startswith("--volume=")]
assert "--http-address=0.0.0.0" in theirs, theirs
for index, word in enumerate(theirs):
    name, _, value = word.partition("=")
    if name == "--model-repository":
        assert value == "/models"
        theirs[index] = f"{{name}}={{volume}}"
    elif name.endswith("-port"):
        theirs[index] = f"{{name}}={{published.pop(value)}}"
    elif name.endswith("-address"):
        theirs[index] = f"{{name}}=127.0.0.1"
assert published == {{}}, published
os.execv({triton!r}, [{triton!r}, *theirs])
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    """A valid repository; its servers are stopped, even if a test fails."""
    folder = tiny.write_repository(tmp_path / "repository")
    yield folder
    for state in read_states():
        if state.repository == str(folder):
            stop_server(state.grpc_port)
    assert tiny.leftovers(folder) == []


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment with `tritonserver` on PATH (the wheel's, with our backend) and a substitute for `docker`."""
    runtime = find_runtime("embedded", on_progress=lambda text: None)
    folder = tmp_path / "bin"
    folder.mkdir()
    triton = folder / "tritonserver"
    triton.write_text(f'#!/bin/sh\nexport LD_LIBRARY_PATH={runtime.environment["LD_LIBRARY_PATH"]}\nexec {triton_command(runtime)} "$@"\n')
    (folder / "docker").write_text(DOCKER.format(python=sys.executable, triton=str(triton)))
    for program in folder.iterdir():
        program.chmod(0o755)
    return environment(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")


def triton_command(runtime: Runtime) -> str:
    settings = [f"--backend-config=onnxruntime,{key}={value}" for key, value in runtime.backend_settings.items()]
    return shlex.join([str(runtime.executable), f"--backend-directory={runtime.backend_directory}", *settings])


def key_file(folder: Path) -> Path:
    path = folder / "admin.key"
    path.write_text(f"{KEY}\n")
    return path


def assert_answers_then_stop(repository: Path, address: Address) -> None:
    np.save(repository.parent / "x.npy", tiny.images(3))
    for url in (address.http, address.grpc):
        assert "ensemble: 3 images" in succeed("predict", "--url", url, "x.npy", cwd=repository.parent)
    state = find_state(address.grpc_port)
    sockets = listening_sockets(state.http_port, state.grpc_port, state.metrics_port)
    assert len(sockets) == 3
    succeed("serve", "--stop", "--grpc-port", str(address.grpc_port), cwd=repository.parent)
    assert tiny.leftovers(repository) == []
    assert closed_within(sockets, 10)
    assert address.grpc_port not in [other.grpc_port for other in read_states()]


def test_the_admin_key_comes_from_a_file(repository: Path) -> None:
    key = key_file(repository.parent)
    arguments = ("serve", "--repository", repository, "--free-ports", "--detach", "--admin-key-file", key)
    output = succeed(*arguments, cwd=repository.parent)
    assert KEY not in output
    address = address_from(output)
    assert find_state(address.grpc_port).admin_key == KEY
    for sent_key, status in ((KEY, 200), (KEY + "x", 403)):
        answer = urllib3.request("POST", f"{address.http}/v2/repository/index", json={}, headers={"x-admin-key": sent_key})
        assert answer.status == status
    assert_answers_then_stop(repository, address)


@pytest.mark.parametrize(("host", "printed"), [("localhost", "127.0.0.1"), ("::1", "[::1]")])
def test_localhost_and_ipv6_hosts_serve(repository: Path, host: str, printed: str) -> None:
    if host == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    arguments = ("serve", "--repository", repository, "--free-ports", "--detach", "--host", host, "--start-timeout", "60")
    address = address_from(succeed(*arguments, cwd=repository.parent))
    assert address.http.startswith(f"http://{printed}:")
    assert_answers_then_stop(repository, address)


def test_an_unknown_host_is_an_error(repository: Path) -> None:
    arguments = ("serve", "--repository", repository, "--free-ports", "--expose-outdated-server", "--host", "no-such-host.invalid")
    error = error_message(run(*arguments, cwd=repository.parent))
    assert_facts(error, "'no-such-host.invalid'")


def test_serve_runs_triton_from_path(repository: Path, programs: dict[str, str]) -> None:
    arguments = ("serve", "--repository", repository, "--free-ports", "--detach", "--runtime", "path")
    address = address_from(succeed(*arguments, cwd=repository.parent, env=programs))
    assert find_state(address.grpc_port).runtime == "path"
    assert_answers_then_stop(repository, address)


def test_serve_prints_docker_run_without_the_admin_key(repository: Path, programs: dict[str, str]) -> None:
    key = key_file(repository.parent)
    arguments = ("serve", "--repository", repository, "--free-ports", "--detach", "--runtime", "docker", "--admin-key-file", key)
    done = run(*arguments, cwd=repository.parent, env=programs)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "docker run" in line]
    words = shlex.split(line.partition("): ")[2])
    assert words[:3] == [str(repository.parent / "bin/docker"), "run", "--rm"]
    assert f"--volume={repository}:/models:ro" in words
    assert "--http-restricted-api=model-repository,shared-memory,logging,trace:x-admin-key=ADMIN-KEY" in words
    address = address_from(done.stdout)
    answer = urllib3.request("POST", f"{address.http}/v2/repository/index", json={}, headers={"x-admin-key": KEY})
    assert answer.status == 200, "the server has the admin key"
    assert_answers_then_stop(repository, address)


def test_an_error_of_docker_is_printed(repository: Path, programs: dict[str, str]) -> None:
    docker = repository.parent / "bin/docker"
    docker.write_text("#!/bin/sh\necho 'permission denied while trying to connect to the Docker daemon socket' >&2\nexit 126\n")
    error = error_message(
        run("serve", "--repository", repository, "--free-ports", "--runtime", "docker", cwd=repository.parent, env=programs)
    )
    assert "Triton" in error
    assert error.endswith("permission denied while trying to connect to the Docker daemon socket")
