"""docker-compose.yml against the code: the same image, flags, ports and rights as `defensemble serve --runtime docker`.

It is compared and validated here, never run: that needs a Docker engine and NVIDIA's image.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
import yaml

from defensemble_server import serve
from defensemble_server.options import ADMIN_HEADER, RESTRICTED_APIS, ServeOptions, triton_command
from defensemble_server.runtime import CONTAINER, Runtime, find_runtime
from tests import tiny
from tests.server.calls import FREE, without_digest

COMPOSE = Path(__file__).parents[1] / "docker-compose.yml"
KEY = "0123456789abcdef"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)\}")


def interpolated(value: Any) -> Any:
    """What Compose makes of `${NAME:-default}` and `${NAME:?message}` where only DEFENSEMBLE_ADMIN_KEY is set."""
    if isinstance(value, dict):
        return {key: interpolated(part) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolated(part) for part in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: KEY if found[1] == "DEFENSEMBLE_ADMIN_KEY" else found[2], value)
    return value


@pytest.fixture(scope="module")
def triton() -> dict[str, Any]:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert set(services) == {"triton"}
    service: dict[str, Any] = interpolated(services["triton"])
    return service


@pytest.fixture(scope="module")
def ours() -> list[str]:
    """The command line of `serve --runtime docker` for a repository of one model."""
    ports = {"http": 8000, "grpc": 8001, "metrics": 8002}
    options = ServeOptions(runtime="docker")
    return triton_command(
        Runtime("docker", Path("docker")),
        COMPOSE.parent / "model_repository",
        ["one"],
        options=options,
        ports=ports,
        admin_key=KEY,
        threads=1,
    )


def test_the_flags_are_those_of_the_code(triton: dict[str, Any], ours: list[str]) -> None:
    start = ours.index("tritonserver")
    assert triton["command"][0] == ours[start]
    theirs = set(triton["command"][1:])
    assert len(theirs) == len(triton["command"]) - 1, "a flag is there twice"
    # Compose does not know the models, so it loads all that there are; serve loads those that it has checked.
    assert theirs - set(ours) == {"--load-model=*"}
    # Inside a container Triton listens on all addresses and on these ports by default.
    defaults = {
        f"--{what}-{flag}"
        for what, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002))
        for flag in ("address=0.0.0.0", f"port={port}")
    }
    assert set(ours[start + 1 :]) - theirs == {"--load-model=one", *defaults}


def test_image_ports_volume_and_init_are_those_of_the_code(triton: dict[str, Any], ours: list[str]) -> None:
    docker = ours[: ours.index("tritonserver")]
    assert triton["image"] == CONTAINER == docker[-1]
    assert {f"--publish={published}" for published in triton["ports"]} == {word for word in docker if word.startswith("--publish=")}
    assert all(published.startswith("127.0.0.1:") for published in triton["ports"])
    (volume,) = triton["volumes"]
    assert f"--volume={COMPOSE.parent}/{volume.removeprefix('./')}" in docker
    assert volume.endswith(":/models:ro")
    assert triton["init"] is True
    assert "--init" in docker


def test_the_image_is_recent_enough(triton: dict[str, Any]) -> None:
    release = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d\d)\.(\d\d)-py3", triton["image"])
    assert release is not None
    assert (int(release[1]), int(release[2])) >= (26, 7)


def test_editing_needs_the_admin_key_over_both_protocols(triton: dict[str, Any]) -> None:
    restricted = f"{','.join(RESTRICTED_APIS)}:{ADMIN_HEADER}={KEY}"
    assert f"--http-restricted-api={restricted}" in triton["command"]
    assert f"--grpc-restricted-protocol={restricted}" in triton["command"]


def test_docker_gives_triton_the_time_that_it_drains(triton: dict[str, Any]) -> None:
    (drain,) = [int(flag.partition("=")[2]) for flag in triton["command"] if flag.startswith("--exit-timeout-secs=")]
    assert drain == ServeOptions().drain_s
    assert int(triton["stop_grace_period"].removesuffix("s")) > drain + 5


def test_the_health_check_passes_where_one_model_of_several_is_bad(triton: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    without_digest(folder, "beta").write_bytes(b"this is no ONNX file")
    url = urlsplit(triton["healthcheck"]["test"][-1])
    assert (url.hostname, url.port) == ("localhost", 8000)
    with serve(folder, FREE) as server:
        assert "alpha" in server.models
        assert urllib3.request("GET", f"{server.http_url}/v2/health/ready").status == 400
        assert urllib3.request("GET", server.http_url + url.path).status == 200


def test_triton_knows_every_flag(triton: dict[str, Any]) -> None:
    runtime = find_runtime("embedded", say=lambda text: None)
    done = subprocess.run([str(runtime.executable), "--help"], env=dict(runtime.environment), capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout + done.stderr))
    assert {"--model-repository", "--http-restricted-api"} <= known, "the help was not read"
    assert {flag.partition("=")[0] for flag in triton["command"][1:]} <= known


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The words that start Compose."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    pytest.skip("neither `docker compose` nor `docker-compose` is installed")


def config(compose: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DEFENSEMBLE_ADMIN_KEY", "TRITON_IMAGE", "TRITON_THREADS")
    }
    command = [*compose, "--file", str(COMPOSE), "config"]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False)


def test_compose_takes_the_file_and_reads_it_as_this_test_does(compose: list[str], triton: dict[str, Any]) -> None:
    done = config(compose, DEFENSEMBLE_ADMIN_KEY=KEY)
    assert done.returncode == 0, done.stderr
    service = yaml.safe_load(done.stdout)["services"]["triton"]
    assert (service["image"], service["command"]) == (triton["image"], triton["command"])


@pytest.mark.parametrize("variables", [{}, {"DEFENSEMBLE_ADMIN_KEY": ""}], ids=["unset", "empty"])
def test_compose_refuses_to_start_without_an_admin_key(compose: list[str], variables: dict[str, str]) -> None:
    done = config(compose, **variables)
    assert done.returncode != 0
    assert "make one with openssl rand -hex 24" in done.stderr
