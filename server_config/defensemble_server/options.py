"""How a server is to be started, and the command line that says so to Triton."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import secrets
import shlex
import socket
import stat
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from defensemble_repository.filesystem.regular_files import read_argument

from .errors import PortError, ServerError
from .process.state import read_states
from .runtime.find import CONTAINER, RUNTIMES, Runtime

# Who may edit what is served, place memory in it, or choose where it logs, may do anything to it. Model configurations stay readable.
RESTRICTED_APIS = ("model-repository", "shared-memory", "logging", "trace")
ADMIN_HEADER = "x-admin-key"
_LARGEST_KEY_FILE = 1 << 16
EXPOSE_FLAG = "--expose-outdated-server"
# The kernel gives ports from here on to clients.
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_FREE_PORT = 10_000
_FREE_PORT_TRIES = 200


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, on which runtime and profile it runs; port 0 chooses a free one.

    With `restart` a server that dies or hangs is started again; a container is not, which is the affair of its own restart policy.
    """

    runtime: str = "embedded"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    profile: str | None = None
    admin_key: str | None = None
    drain_s: int = 5
    expose_outdated_server: bool = False
    restart: bool = True

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ServerError(f"runtime must be one of {', '.join(RUNTIMES)}, got {self.runtime!r}")
        for what, port in self.ports.items():
            if not 0 <= port <= 65535:
                raise PortError(f"{what} port must be 0 (any free one) to 65535, got {port}")
        chosen = [port for port in self.ports.values() if port]
        if len(set(chosen)) < len(chosen):
            raise PortError(f"the three ports must differ, got {self.ports}")
        if self.drain_s < 0:
            raise ServerError(f"drain_s must be 0 or more, got {self.drain_s}")
        if self.profile is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", self.profile):
            raise ServerError(f"a profile's name has letters, digits, '_', '.' or '-', got {self.profile!r}")
        if self.admin_key is not None:
            check_admin_key(self.admin_key)
        if self.runtime == "embedded" and not _is_loopback(self.host) and not self.expose_outdated_server:
            raise PortError(
                "the embedded Triton's core is of October 2024 and has published holes that need no login (CVE-2025-23310, CVE-2026-24206 "
                f"and more): it listens on loopback only, not on {self.host}. Use NVIDIA's container (--runtime docker), or, knowing that, "
                f"{EXPOSE_FLAG}"
            )

    @property
    def ports(self) -> dict[str, int]:
        """The ports by what listens on them."""
        return {"http": self.http_port, "grpc": self.grpc_port, "metrics": self.metrics_port}


def check_admin_key(key: str) -> str:
    """Return ``key`` where Triton's command line and a header take it.

    Raises:
        ServerError: fewer than 16 characters, or others than letters, digits, ``_`` and ``-``. The text does not show the key.
    """
    if not re.fullmatch(r"[A-Za-z0-9_\-]{16,256}", key):
        raise ServerError(
            f"an admin key has 16 to 256 letters, digits, '_' or '-', got {len(key)} characters: "
            "make one with `(umask 077; openssl rand -hex 24 > FILE)`"
        )
    return key


def read_admin_key(path: Path, on_warning: Callable[[str], None] = lambda message: None) -> str:
    """Read an admin key from the only line of a file, or of a pipe such as `<(COMMAND)`.

    Args:
        path: the file.
        on_warning: receives a message where users other than the file's owner can read it.

    Raises:
        ServerError: the file cannot be read, or holds no such key.
    """
    try:
        text = read_argument(path, _LARGEST_KEY_FILE).decode().strip()
        status = path.stat()
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(f"admin key file {path} cannot be read: {error}") from error
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        on_warning(
            f"admin key file {path} has mode {mode:03o}, expected 600: other users of this machine can read the key. "
            f"Close it with: chmod 600 {shlex.quote(str(path))}"
        )
    return check_admin_key(text)


def new_admin_key() -> str:
    """A random admin key of 192 bits."""
    return secrets.token_hex(24)


def address_from_host(host: str) -> str:
    """The address that a host name stands for, IPv4 where it has one: Triton takes addresses alone (a name becomes 255.255.255.255).

    Raises:
        PortError: no such host is known.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PortError(f"host {host!r} cannot be resolved: {error}. Name an address of this machine, such as 127.0.0.1 or ::1") from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def in_url(host: str) -> str:
    """An address as it is written before a port."""
    return f"[{host}]" if ":" in host else host


def connect_host(host: str) -> str:
    """Where a server that listens on an address is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def reached_at(host: str) -> str:
    """The same, as it is written before a port."""
    return in_url(connect_host(host))


def claim_ports(options: ServeOptions, *, guard_pid: int | None = None) -> dict[str, int]:
    """The ports to listen on: those asked for, checked to be free, and free ones in the place of 0.

    The ports of our other servers are not free, even while one of these is restarted. `guard_pid` is the guard whose server may have them.

    Raises:
        PortError: a port is taken.
    """
    hosts = {options.host, "0.0.0.0", "::"}
    others = [state for state in read_states() if state.pid != guard_pid and (state.host in hosts or options.host in ("0.0.0.0", "::"))]
    ours = {port: state for state in others for port in state.ports}
    held: list[socket.socket] = []
    ports = {}
    try:
        for what, port in options.ports.items():
            if port in ours:
                raise PortError(
                    f"{what} port {port} is held by our server of {ours[port].repository}: stop it with "
                    f"`defensemble serve --stop --grpc-port {ours[port].grpc_port}`, or pass --free-ports"
                )
            try:
                held.append(_listener(options.host, port) if port else _free_listener(options.host, set(ours)))
            except OSError as error:
                raise PortError(
                    f"{what} port {port} on {options.host} cannot be used: {error.strerror or error}. Choose another with --{what}-port "
                    "(0: any free one) or --free-ports, or stop what holds it"
                ) from error
            ports[what] = held[-1].getsockname()[1]
    finally:
        for probe in held:
            probe.close()
    return ports


def _listener(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
    except BaseException:
        probe.close()
        raise
    return probe


def _free_listener(host: str, excluded: Container[int]) -> socket.socket:
    """Listen on a free port below those that the kernel gives to clients.

    While a server restarts, nothing listens on its port. A client that connects then could be given that very port by the kernel, as its
    own, and would hold it.
    """
    low = int(_EPHEMERAL_PORTS.read_text().split()[0])
    for _ in range(_FREE_PORT_TRIES if low > _FIRST_FREE_PORT else 0):
        port = _FIRST_FREE_PORT + secrets.randbelow(low - _FIRST_FREE_PORT)
        if port not in excluded:
            try:
                return _listener(host, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    return _listener(host, 0)  # there is none below


def triton_command(
    runtime: Runtime,
    repository: Path,
    models: Sequence[str],
    *,
    options: ServeOptions,
    ports: dict[str, int],
    admin_key: str,
    threads: int,
    gpus: bool = False,
    caches: Sequence[str] = (),
    plans_hold_code: bool = False,
) -> list[str]:
    """The command line that starts Triton on ``models`` of ``repository``, all loaded explicitly.

    A container is given the GPUs where ``gpus`` is set, and volumes that outlive it at ``caches``, absolute paths inside it.
    ``plans_hold_code`` lets TensorRT's backend load plans that are version compatible.
    """
    docker = runtime.name == "docker"
    inner = {"http": 8000, "grpc": 8001, "metrics": 8002} if docker else ports
    host = "0.0.0.0" if docker else options.host
    # Tried with core 2.51: its HTTP server (libevhtp) wants a prefix before an IPv6 address, gRPC brackets around it.
    addresses = {"http": f"ipv6:{host}", "grpc": f"[{host}]", "metrics": f"ipv6:{host}"} if ":" in host else dict.fromkeys(inner, host)
    command = _docker_prefix(runtime, repository, options, ports, gpus, caches) if docker else [str(runtime.executable)]
    command += [
        f"--model-repository={'/models' if docker else repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--exit-on-error=false",
        f"--exit-timeout-secs={options.drain_s}",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
    ]
    for what, port in inner.items():
        command += [f"--{what}-address={addresses[what]}", f"--{what}-port={port}"]
    restricted = f"{','.join(RESTRICTED_APIS)}:{ADMIN_HEADER}={admin_key}"
    command += [f"--http-restricted-api={restricted}", f"--grpc-restricted-protocol={restricted}"]
    settings = {**runtime.backend_settings, "intra_op_thread_count": str(threads)}
    if runtime.backend_directory is not None:
        command.append(f"--backend-directory={runtime.backend_directory}")
        settings["drain_seconds"] = str(options.drain_s)
    else:
        settings["enable-global-threadpool"] = "1"  # NVIDIA's backend reads the thread count from its command line for its global pool only
    command += [f"--backend-config=onnxruntime,{key}={value}" for key, value in settings.items()]
    if plans_hold_code:
        command.append("--backend-config=tensorrt,version-compatible=true")  # NVIDIA's tensorrt_backend, README: false by default
    if options.profile is not None:
        command.append(f"--model-config-name={options.profile}")
    return command


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _docker_prefix(
    runtime: Runtime, repository: Path, options: ServeOptions, ports: dict[str, int], gpus: bool, caches: Sequence[str]
) -> list[str]:
    host = in_url(options.host)
    published = [f"--publish={host}:{ports[what]}:{inner}" for what, inner in (("http", 8000), ("grpc", 8001), ("metrics", 8002))]
    return [
        str(runtime.executable),
        "run",
        "--rm",
        "--init",
        f"--name=defensemble-{ports['grpc']}",
        *(["--gpus=all"] if gpus else []),
        *published,
        f"--volume={repository.resolve()}:/models:ro",
        *(f"--volume=defensemble{cache.replace('/', '-')}:{cache}" for cache in caches),
        CONTAINER,
        "tritonserver",
    ]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
