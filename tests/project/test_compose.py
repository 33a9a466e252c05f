"""docker-compose.yml against the code: the same images, commands, flags, ports, paths and rights as `defensemble` itself has.

It is compared and validated here, never run: that needs a Docker engine and NVIDIA's images.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
import yaml

from benchmarks.common.nginx import CONFIGURATION, TRITON_GRPC, TRITON_HTTP
from defensemble_export import EngineCacheOptions, EngineError
from defensemble_export.engines.target import load_tensorrt
from defensemble_repository.names import PROFILES
from defensemble_server import serve
from defensemble_server.admin_key import ADMIN_HEADER, RESTRICTED_APIS
from defensemble_server.command import triton_command
from defensemble_server.options import ServeOptions
from defensemble_server.runtime.find import CONTAINER, NGC_TAG, Runtime, find_runtime
from tests.support import tiny
from tests.support.calls import FREE, without_digest
from tests.support.checkout import ROOT
from tests.support.command_line import context_of
from tests.support.facts import assert_facts

# Of the same month as the server, so with the same TensorRT: what plans are built in.
TENSORRT_CONTAINER = f"nvcr.io/nvidia/tensorrt:{NGC_TAG}-py3"
COMPOSE = ROOT / "docker-compose.yml"
KEY = "0123456789abcdef"
SERVERS = {"triton": None, "triton-gpu": "gpu-tensorrt"}
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
def services() -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = interpolated(yaml.safe_load(COMPOSE.read_text())["services"])
    assert set(read) == {*SERVERS, "engines", "proxy"}
    return read


def ours(profile: str | None) -> list[str]:
    """The command line of `serve --runtime docker` for a repository of one model."""
    return triton_command(
        Runtime("docker", Path("docker")),
        ROOT / "model_repository",
        ["one"],
        options=ServeOptions(runtime="docker", profile=profile),
        ports={"http": 8000, "grpc": 8001, "metrics": 8002},
        admin_key=KEY,
        threads=1,
        gpus=profile is not None,
    )


@pytest.mark.parametrize("name", SERVERS)
def test_the_flags_are_those_of_the_code(services: dict[str, dict[str, Any]], name: str) -> None:
    words = ours(SERVERS[name])
    start = words.index("tritonserver")
    command = services[name]["command"]
    assert command[0] == words[start]
    theirs = set(command[1:])
    assert len(theirs) == len(command) - 1, "a flag is there twice"
    # Compose does not know the models, so it loads all that there are; serve loads those that it has checked.
    assert theirs - set(words) == {"--load-model=*"}
    # Inside a container Triton listens on all addresses and on these ports by default.
    defaults = {
        f"--{what}-{flag}"
        for what, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002))
        for flag in ("address=0.0.0.0", f"port={port}")
    }
    assert set(words[start + 1 :]) - theirs == {"--load-model=one", *defaults}


@pytest.mark.parametrize("name", SERVERS)
def test_image_ports_models_and_gpus_are_those_of_the_code(services: dict[str, dict[str, Any]], name: str) -> None:
    service, words = services[name], ours(SERVERS[name])
    docker = words[: words.index("tritonserver")]
    assert service["image"] == CONTAINER == docker[-1]
    assert {f"--publish={published}" for published in service["ports"]} == {word for word in docker if word.startswith("--publish=")}
    assert all(published.startswith("127.0.0.1:") for published in service["ports"])
    (models,) = [volume for volume in service["volumes"] if ":/models" in volume]
    assert f"--volume={ROOT}/{models.removeprefix('./')}" in docker
    assert models.endswith(":/models:ro")
    assert service["init"] is True
    assert "--init" in docker
    assert ("--gpus=all" in docker) == ("deploy" in service) == (name == "triton-gpu")


def test_both_images_are_of_one_recent_month_set_by_one_variable(services: dict[str, dict[str, Any]]) -> None:
    month = re.fullmatch(r"(\d\d)\.(\d\d)", NGC_TAG)
    assert month is not None
    assert (int(month[1]), int(month[2])) >= (26, 7)
    build = services["engines"]["build"]
    dockerfile = (ROOT / build["context"] / build["dockerfile"]).read_text()
    (image,) = re.findall(r"^FROM (.*)$", dockerfile, re.MULTILINE)
    assert image.replace("${NGC_TAG}", build["args"]["NGC_TAG"]) == TENSORRT_CONTAINER
    assert re.findall(r"^ARG (.*)$", dockerfile, re.MULTILINE) == ["NGC_TAG"], "no second default"
    assert services["engines"]["image"] == f"defensemble-engines:{NGC_TAG}"
    text = COMPOSE.read_text()
    settings = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\d\d\.\d\d", settings)) == {NGC_TAG}
    assert settings.count(NGC_TAG) == settings.count("${NGC_TAG:-" + NGC_TAG + "}"), "each through the variable"


def test_editing_needs_the_admin_key_over_both_protocols(services: dict[str, dict[str, Any]]) -> None:
    restricted = f"{','.join(RESTRICTED_APIS)}:{ADMIN_HEADER}={KEY}"
    for name in SERVERS:
        assert f"--http-restricted-api={restricted}" in services[name]["command"]
        assert f"--grpc-restricted-protocol={restricted}" in services[name]["command"]


def test_docker_gives_triton_the_time_that_it_drains(services: dict[str, dict[str, Any]]) -> None:
    for name in SERVERS:
        (drain,) = [int(flag.partition("=")[2]) for flag in services[name]["command"] if flag.startswith("--exit-timeout-secs=")]
        assert drain == ServeOptions().drain_s
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > drain + 5


def test_every_service_is_of_one_profile_and_limited(services: dict[str, dict[str, Any]]) -> None:
    assert {name: service["profiles"] for name, service in services.items()} == {
        "triton": ["cpu"],
        "triton-gpu": ["gpu"],
        "engines": ["gpu"],
        "proxy": ["proxy"],
    }
    for name, service in services.items():
        assert re.fullmatch(r"\d+g", service["mem_limit"]), name
        assert float(service["cpus"]) > 0
        assert service["pids_limit"] > 0
        # triton-server in NVIDIA's images, nginx in its own
        assert service["user"] == ("101:101" if name == "proxy" else "1000:1000")
        assert service["read_only"] is True
        assert service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["engines"]["network_mode"] == "none"
    assert {name for name, service in services.items() if "healthcheck" in service} == set(SERVERS), "no others"


def test_the_proxy_has_the_shipped_configuration_and_reaches_triton(services: dict[str, dict[str, Any]]) -> None:
    proxy = services["proxy"]
    (configuration,) = [volume.split(":")[0] for volume in proxy["volumes"]]
    assert (ROOT / configuration).samefile(CONFIGURATION)
    # It shares the host's network, where the ports of Triton are published.
    assert proxy["network_mode"] == "host"
    published = {published.rpartition(":")[0] for published in services["triton"]["ports"]}
    assert {TRITON_HTTP, TRITON_GRPC} < published


def commands(service: dict[str, Any]) -> list[list[str]]:
    """The calls of `defensemble` in a shell command that ends at the first that fails."""
    assert service["command"][:2] == ["sh", "-ec"]
    lines = [shlex.split(line) for line in service["command"][2].splitlines()]
    return [[word for word in words[1:] if not word.startswith("$")] for words in lines if words[0] == "defensemble"]


def built_with(service: dict[str, Any], models: Path, compare: str) -> tuple[list[str], str]:
    """The words of `build-engine` when the builder's script runs on `models`, and its output; `defensemble` itself is stood in for."""
    programs = models.parent / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "defensemble").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "defensemble").chmod(0o755)
    script = service["command"][2].replace("$$", "$").replace("/models", str(models))
    environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "ENGINES_COMPARE": compare}
    done = subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, check=True)
    build, write = (line.split() for line in done.stdout.splitlines())
    assert write[:2] == ["profile", "write"]
    return build, done.stderr


def test_the_builder_s_calls_are_ones_that_the_command_line_takes(services: dict[str, dict[str, Any]]) -> None:
    calls = commands(services["engines"])
    assert [words[:2] for words in calls] == [["build-engine", "--repository"], ["profile", "write"]]
    build, write = (context_of(*words) for words in calls)
    assert build.params["repository"] == write.params["repository"] == Path("/models")
    assert write.params["profile"] == SERVERS["triton-gpu"]
    assert build.params["timing_cache"].parent == Path(EngineCacheOptions().cache_dir)
    assert services["engines"]["environment"] == {"ENGINES_COMPARE": ""}


def test_the_builder_compares_plans_if_there_are_images_and_reports_if_not(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    images = models / "images.npy"
    documented = re.search(r"ENGINES_COMPARE +.*Empty: --images (\S+) .*\n?.*else (--\S+),", COMPOSE.read_text())
    assert documented is not None
    assert documented.groups() == ("/models/images.npy", "--no-compare")
    words, output = built_with(services["engines"], models, "")
    assert words[-1] == "--no-compare"
    assert_facts(output, f"NOT | {images}")
    images.touch()
    words, output = built_with(services["engines"], models, "")
    assert (words[-2:], output) == (["--images", str(images)], "")
    assert context_of(*words).params["images_file"] == images
    for given in ("--no-compare", "--images /somewhere/x.npy"):
        words, output = built_with(services["engines"], models, given)
        assert (words[-len(given.split()) :], output) == (given.split(), "")
        assert words.count("--images") == given.count("--images")


def test_the_fix_for_a_missing_tensorrt_exists(services: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(EngineError) as caught:
        _without_tensorrt()
    words = re.search(r"docker compose --profile (\S+) run --rm (\S+) \((\S+)\)", str(caught.value))
    assert words is not None
    assert services[words[2]]["profiles"] == [words[1]]
    assert words[3] == TENSORRT_CONTAINER


def _without_tensorrt() -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT's package is installed: that it is missing cannot be seen here")
    load_tensorrt()


def test_the_builder_goes_before_triton_writes_the_models_and_shares_the_cache(services: dict[str, dict[str, Any]]) -> None:
    assert services["triton-gpu"]["depends_on"] == {"engines": {"condition": "service_completed_successfully"}}
    cache = f"engines:{EngineCacheOptions().cache_dir}"
    models = services["triton"]["volumes"][0].removesuffix(":ro")
    assert services["triton"]["volumes"] == [f"{models}:ro"]
    assert services["triton-gpu"]["volumes"] == [f"{models}:ro", cache]
    assert services["engines"]["volumes"] == [models, cache]
    assert set(yaml.safe_load(COMPOSE.read_text())["volumes"]) == {"engines"}
    dockerfile = (ROOT / services["engines"]["build"]["dockerfile"]).read_text()
    assert f"install -d -m 1777 {EngineCacheOptions().cache_dir}" in dockerfile, "a named volume takes its rights from the image"
    devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    for name in ("triton-gpu", "engines"):
        assert services[name]["deploy"] == {"resources": {"reservations": {"devices": devices}}}


def test_the_commands_that_the_file_explains_name_its_profiles_and_services(services: dict[str, dict[str, Any]]) -> None:
    named = re.findall(r"docker compose --profile (\w+) up(?: --build| --no-deps ([\w-]+))?", COMPOSE.read_text())
    assert named == [("cpu", ""), ("gpu", ""), ("gpu", "triton-gpu")]
    assert all(profile in services[service]["profiles"] for profile, service in named if service)
    assert services["proxy"]["profiles"] == re.findall(r"docker compose --profile cpu --profile (\w+) up", COMPOSE.read_text())


def test_the_variables_that_the_file_explains_are_those_that_it_reads() -> None:
    text = COMPOSE.read_text()
    head = text[: text.index("\nx-triton:")]
    read = set(re.findall(r"\$\{(\w+)", text))
    assert read == {name for name in re.findall(r"[A-Z]+_[A-Z_]+", head) if name != "NOT"}
    (named,) = re.findall(r"TRITON_PROFILE +profile of the GPU service: (.*?) \(", head)
    assert set(re.split(", | or ", named)) == set(PROFILES) - {"cpu"}
    assert "NOT been run" in head


def test_the_image_of_the_builder_is_given_what_it_installs(tmp_path: Path) -> None:
    """What `.dockerignore` lets through, read as Docker reads a list that begins with `*`, makes a wheel's worth of sources."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert not allowed - {path.name for path in ROOT.iterdir()}
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"^packages = \[(.*?)\]", project.partition("[tool.hatch.build.targets.wheel]")[2], re.DOTALL | re.MULTILINE)
    assert packages is not None
    needed = {path.split("/")[0] for path in re.findall(r'"(.*?)"', packages[1])} | {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
    }
    assert allowed == needed


@pytest.mark.parametrize("name", SERVERS)
def test_the_health_check_asks_where_triton_listens(services: dict[str, dict[str, Any]], name: str) -> None:
    url = urlsplit(services[name]["healthcheck"]["test"][-1])
    assert (url.hostname, url.port, url.path) == ("localhost", 8000, "/v2/health/live")
    assert {**services[name]["healthcheck"], "start_period": "20s"} == services["triton"]["healthcheck"]


def test_the_health_check_passes_where_one_model_of_several_is_bad(tmp_path: Path) -> None:
    folder = tiny.write_repository(tmp_path / "repository")
    without_digest(folder, "beta").write_bytes(b"this is no ONNX file")
    with serve(folder, FREE) as server:
        assert "alpha" in server.models
        assert urllib3.request("GET", f"{server.http_url}/v2/health/ready").status == 400
        assert urllib3.request("GET", f"{server.http_url}/v2/health/live").status == 200


@pytest.mark.parametrize("name", SERVERS)
def test_triton_knows_every_flag(services: dict[str, dict[str, Any]], name: str) -> None:
    runtime = find_runtime("embedded", on_progress=lambda text: None)
    done = subprocess.run([str(runtime.executable), "--help"], env=dict(runtime.environment), capture_output=True, text=True, check=False)
    known = set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout + done.stderr))
    assert {"--model-repository", "--http-restricted-api"} <= known, "the help was not read"
    assert {flag.partition("=")[0] for flag in services[name]["command"][1:]} <= known


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """The words that start Compose."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) and subprocess.run([*words, "version"], capture_output=True, check=False).returncode == 0:
            return words
    pytest.skip("neither `docker compose` nor `docker-compose` is installed")


def config(compose: list[str], profile: str, **variables: str) -> subprocess.CompletedProcess[str]:
    known = re.findall(r"\$\{(\w+)", COMPOSE.read_text())
    environment = {key: value for key, value in os.environ.items() if key not in known and not key.startswith("COMPOSE_")}
    command = [*compose, "--file", str(COMPOSE), "--profile", profile, "config"]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("profile", ["cpu", "gpu", "proxy"])
def test_compose_takes_the_file_and_reads_it_as_this_test_does(
    compose: list[str], services: dict[str, dict[str, Any]], profile: str
) -> None:
    done = config(compose, profile, DEFENSEMBLE_ADMIN_KEY=KEY)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    expected = {name for name, service in services.items() if profile in service["profiles"]}
    assert expected <= set(read)
    for name in expected:
        for key in ("image", "command", "user", "read_only", "cap_drop", "deploy"):
            assert read[name].get(key) == services[name].get(key), f"{name}: {key}"


def test_compose_takes_every_variable(compose: list[str]) -> None:
    values = {
        "NGC_TAG": "27.01",
        "MODEL_REPOSITORY": "/somewhere",
        "ENGINES_USER": "7:8",
        "ENGINES_COMPARE": "--images /models/x.npy",
        "TRITON_PROFILE": "gpu",
        "TRITON_THREADS": "3",
        "TRITON_CPUS": "1.5",
        "TRITON_MEMORY": "3g",
        "ENGINES_MEMORY": "5g",
        "NGINX_TAG": "1.27",
        "NGINX_CPUS": "0.5",
        "NGINX_MEMORY": "2g",
    }
    done = config(compose, "gpu", DEFENSEMBLE_ADMIN_KEY=KEY, **values)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    triton, engines = read["triton-gpu"], read["engines"]
    assert triton["image"].endswith(":27.01-py3")
    assert engines["build"]["args"]["NGC_TAG"] == "27.01"
    assert engines["user"] == "7:8"
    assert engines["environment"] == {"ENGINES_COMPARE": "--images /models/x.npy"}
    assert {"--model-config-name=gpu", "--backend-config=onnxruntime,intra_op_thread_count=3"} <= set(triton["command"])
    assert "/somewhere" in str(triton["volumes"])
    assert (float(triton["cpus"]), str(triton["mem_limit"])[0], str(engines["mem_limit"])[0]) == (1.5, "3", "5")


@pytest.mark.parametrize("variables", [{}, {"DEFENSEMBLE_ADMIN_KEY": ""}], ids=["unset", "empty"])
@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_refuses_to_start_without_an_admin_key(compose: list[str], variables: dict[str, str], profile: str) -> None:
    done = config(compose, profile, **variables)
    assert done.returncode != 0
    assert "openssl rand -hex 24" in done.stderr
