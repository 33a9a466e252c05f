"""Run nginx with the configuration that this project ships, in front of a server, on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.common.processes import children
from benchmarks.common.servers import free_port

CONFIGURATION = Path(__file__).resolve().parents[2] / "server_config/nginx/defensemble.conf"
# The addresses in the shipped configuration.
TRITON_HTTP, TRITON_GRPC = "127.0.0.1:8000", "127.0.0.1:8001"
PROXY_HTTP, PROXY_GRPC = "127.0.0.1:8080", "127.0.0.1:8081"
_START_S = 10.0
_STOP_S = 10.0
_TEMPORARY_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class NginxError(Exception):
    """nginx is not installed, or did not start."""


@dataclass(frozen=True)
class Nginx:
    """A running nginx.

    Attributes:
        http_port: The port for HTTP.
        grpc_port: The port for gRPC.
        folder: What it writes: `error.log`, `access.log` and temporary files.
        pid: The master process.
    """

    http_port: int
    grpc_port: int
    folder: Path
    pid: int

    @property
    def http_url(self) -> str:
        """URL for the client."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """URL for the client."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def worker_pids(self) -> list[int]:
        """Return the processes that serve."""
        return children(self.pid)


def nginx_program() -> str:
    """Return the path of nginx.

    Raises:
        NginxError: It is not installed.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise NginxError("nginx is not installed: apt-get install nginx-light")
    return found


def shipped_configuration(changes: Mapping[str, str]) -> str:
    """Return the shipped configuration with other values.

    Args:
        changes: Replacements, by the text that they replace.

    Raises:
        NginxError: The configuration does not have a text that should be replaced.
    """
    text = CONFIGURATION.read_text()
    for old, new in changes.items():
        if old not in text:
            raise NginxError(f"{CONFIGURATION} has no {old!r}, which should become {new!r}")
        text = text.replace(old, new)
    return text


def write_configuration(folder: Path, text: str) -> Path:
    """Write a main configuration that includes a text; all that nginx writes will be in `folder`. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defensemble.conf").write_text(text)
    main = folder / "nginx.conf"
    main.write_text(
        "\n".join(
            [
                "daemon off;",
                "worker_processes 2;",
                # The workers of root's nginx run as `nobody`, who may not be able to read the folder.
                *(["user root;"] if os.geteuid() == 0 else []),
                f"pid {folder}/nginx.pid;",
                f"error_log {folder}/error.log notice;",
                "events { worker_connections 2048; }",
                "http {",
                f"    access_log {folder}/access.log;",
                *(f"    {kind}_temp_path {folder}/{kind};" for kind in _TEMPORARY_PATHS),
                f"    include {folder}/defensemble.conf;",
                "}",
                "",
            ]
        )
    )
    return main


def nginx_command(main: Path) -> list[str]:
    """Return the command that runs nginx with a configuration from `write_configuration`."""
    return [nginx_program(), "-p", str(main.parent), "-c", str(main), "-e", str(main.parent / "error.log")]


@contextmanager
def start_nginx(folder: Path, *, http_port: int, grpc_port: int, changes: Mapping[str, str] = MappingProxyType({})) -> Iterator[Nginx]:
    """Run nginx in front of a server of this machine, on free ports. It is stopped at the end.

    Args:
        folder: A folder for its files.
        http_port: The server's port for HTTP.
        grpc_port: The server's port for gRPC.
        changes: Other replacements in the shipped configuration.

    Raises:
        NginxError: nginx is not installed, or did not start.
    """
    ours = free_port(), free_port()
    addresses = {
        TRITON_HTTP: f"127.0.0.1:{http_port}",
        TRITON_GRPC: f"127.0.0.1:{grpc_port}",
        PROXY_HTTP: f"127.0.0.1:{ours[0]}",
        PROXY_GRPC: f"127.0.0.1:{ours[1]}",
    }
    main = write_configuration(folder, shipped_configuration({**changes, **addresses}))
    with subprocess.Popen(nginx_command(main), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _START_S
            while not all(map(_accepts, ours)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NginxError(f"nginx did not start within {_START_S:g} s: {(folder / 'error.log').read_text()}")
                time.sleep(0.005)
            yield Nginx(*ours, folder, process.pid)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
