"""The command lines that start Triton, and the platforms that the embedded one refuses; nothing is started here."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from defensemble_server import PortError, RuntimeMissingError, ServeOptions, ServerError, read_admin_key
from defensemble_server.addresses import address_from_host
from defensemble_server.command import triton_command
from defensemble_server.runtime.find import Runtime, check_platform, find_runtime
from tests.support.checkout import ROOT
from tests.support.facts import raises

PORTS = {"http": 18000, "grpc": 18001, "metrics": 18002}
KEY = "0123456789abcdef"


def command(runtime: Runtime, **options: object) -> list[str]:
    chosen = ServeOptions(runtime=runtime.name, **options)  # type: ignore[arg-type]
    return triton_command(runtime, Path("/models/here"), ["a", "e"], options=chosen, ports=PORTS, admin_key=KEY, threads=2)


def test_the_embedded_command_line() -> None:
    runtime = Runtime("embedded", Path("/t/tritonserver"), {}, Path("/cache/b"), {"library": "/o.so"})
    line = command(runtime, profile="gpu", drain_s=7)
    assert line[0] == "/t/tritonserver"
    for flag in (
        "--model-repository=/models/here",
        "--model-control-mode=explicit",
        "--load-model=a",
        "--load-model=e",
        "--exit-timeout-secs=7",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--grpc-port=18001",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        f"--http-restricted-api=model-repository,shared-memory,logging,trace:x-admin-key={KEY}",
        f"--grpc-restricted-protocol=model-repository,shared-memory,logging,trace:x-admin-key={KEY}",
        "--backend-directory=/cache/b",
        "--backend-config=onnxruntime,library=/o.so",
        "--backend-config=onnxruntime,intra_op_thread_count=2",
        "--backend-config=onnxruntime,drain_seconds=7",
        "--model-config-name=gpu",
    ):
        assert flag in line, flag


def test_the_docker_command_line_publishes_on_loopback_and_mounts_read_only() -> None:
    line = command(Runtime("docker", Path("/usr/bin/docker")))
    assert line[:3] == ["/usr/bin/docker", "run", "--rm"]
    assert "--publish=127.0.0.1:18001:8001" in line
    assert "--volume=/models/here:/models:ro" in line
    assert line[line.index("tritonserver") - 1].startswith("nvcr.io/nvidia/tritonserver:26.07")
    inside = line[line.index("tritonserver") :]
    assert "--model-repository=/models" in inside
    assert "--grpc-port=8001" in inside
    assert not [flag for flag in inside if flag.startswith("--backend-directory") or "drain_seconds" in flag], "NVIDIA's own backends"


def test_a_host_name_becomes_an_address_and_an_unknown_one_is_an_error() -> None:
    assert address_from_host("localhost") in ("127.0.0.1", "::1")
    assert [address_from_host(host) for host in ("127.0.0.2", "::1", "::", "0.0.0.0")] == ["127.0.0.2", "::1", "::", "0.0.0.0"]
    for host in ("no-such-host.invalid", "", "a" * 300):
        with pytest.raises(PortError, match=r"127\.0\.0\.1 or ::1"):
            address_from_host(host)


def test_ipv6_addresses_are_written_as_each_of_tritons_servers_wants_them() -> None:
    line = command(Runtime("path", Path("/t/tritonserver")), host="::1")
    assert {"--http-address=ipv6:::1", "--grpc-address=[::1]", "--metrics-address=ipv6:::1"} <= set(line)
    assert "--publish=[::1]:18001:8001" in command(Runtime("docker", Path("/usr/bin/docker")), host="::1")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"http_port": 70000}, "65535 | 70000"),
        ({"http_port": 9000, "grpc_port": 9000}, "differ"),
        ({"runtime": "podman"}, "embedded, path, docker | 'podman'"),
        ({"drain_s": -1}, "0 or more | -1"),
        ({"profile": "../x"}, "profile name"),
    ],
)
def test_options_that_are_refused(options: dict[str, object], text: str) -> None:
    with raises(ServerError, text):
        ServeOptions(**options)  # type: ignore[arg-type]


def test_other_runtimes_may_listen_publicly() -> None:
    assert ServeOptions(runtime="path", host="0.0.0.0").host == "0.0.0.0"
    with pytest.raises(PortError):
        ServeOptions(runtime="embedded", host="0.0.0.0")


@pytest.mark.parametrize(
    ("platform", "text"),
    [
        (("Linux", "x86_64", ("glibc", "2.31")), "glibc 2.35 | 2.31"),
        (("Linux", "x86_64", ("", "")), "glibc | C library"),
        (("Linux", "aarch64", ("glibc", "2.39")), "Linux x86_64 | Linux aarch64"),
        (("Darwin", "arm64", ("", "")), "Darwin arm64"),
    ],
)
def test_platforms_without_the_embedded_triton(platform: tuple[str, str, tuple[str, str]], text: str) -> None:
    with raises(RuntimeMissingError, text):
        check_platform(*platform)


@pytest.mark.parametrize("libc", [("glibc", "2.35"), ("glibc", "2.36"), ("glibc", "3.0")])
def test_platforms_with_it(libc: tuple[str, str]) -> None:
    check_platform("Linux", "x86_64", libc)


@pytest.mark.parametrize("name", ["path", "docker"])
def test_a_runtime_that_is_not_on_path(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(RuntimeMissingError, "PATH | --runtime embedded"):
        find_runtime(name, on_progress=lambda text: None)


def test_an_admin_key_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_admin_key(file) == KEY
    file.write_text("short")
    with pytest.raises(ServerError, match="16 to 256"):
        read_admin_key(file)
    with pytest.raises(ServerError):
        read_admin_key(tmp_path / "none")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o620, 0o640, 0o604, 0o644])
def test_an_admin_key_that_others_can_read_is_warned_of(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "the key"
    file.write_text(f"{KEY}\n")
    file.chmod(mode)
    warnings: list[str] = []
    assert read_admin_key(file, warnings.append) == KEY
    if mode & 0o044:
        assert f"mode {mode:o}," in warnings[0]
        assert f"chmod 600 '{file}'" in warnings[0]
    else:
        assert warnings == []


def test_an_admin_key_comes_from_a_pipe_too() -> None:
    reader, writer = os.pipe()
    os.write(writer, KEY.encode())
    os.close(writer)
    warnings: list[str] = []
    assert read_admin_key(Path(f"/dev/fd/{reader}"), warnings.append) == KEY
    os.close(reader)
    assert warnings == []


def test_the_command_of_the_documents_makes_a_key_of_mode_600(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a key with")
    command = "(umask 077; openssl rand -hex 24 > admin.key)"

    for document in ("README.md", "docker-compose.yml", "docs/how-to/docker.md"):
        assert command in (ROOT / document).read_text(), document
    subprocess.run(["sh", "-c", f"umask 022; {command}"], cwd=tmp_path, check=True)
    assert stat.S_IMODE((tmp_path / "admin.key").stat().st_mode) == 0o600
    warnings: list[str] = []
    read_admin_key(tmp_path / "admin.key", warnings.append)
    assert warnings == []
