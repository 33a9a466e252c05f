"""The compared servers: how each is started and called, and how it is configured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.common.command_line import CORES
from benchmarks.common.raw_calls import HttpRequest, bytes_request, kserve_request
from benchmarks.common.servers import ENSEMBLE, free_port
from benchmarks.peering.environments import environment_python, installed_versions

PIPELINE, FUSED = "pipeline", "fused"
_APPS = "benchmarks.peering.apps"


@dataclass(frozen=True)
class Launch:
    """What a server's command needs.

    Attributes:
        python: The Python of its environment.
        folder: Its working folder, empty before.
        http_port: Port for HTTP.
        grpc_port: Port for gRPC.
        repositories: Our repositories, by the key of the server.
    """

    python: Path
    folder: Path
    http_port: int
    grpc_port: int
    repositories: Mapping[str, Path]


@dataclass(frozen=True)
class Contender:
    """A server of the ensemble: one of ours, or a peer.

    Attributes:
        key: Name on the command line and in results.
        title: Name in tables.
        command: Returns the command; writes files to the folder if it needs some.
        configuration: How it is configured, for the page.
        http: Its requests over HTTP.
        grpc: Whether it is called over gRPC, too.
        ours: Whether it is this project's.
        package: The distribution that is compared; None for this project.
        environment: Name of its environment; None for this process's.
        workers: Number of processes that compute, each with a pool of threads of its own.
        variables: More environment variables.
    """

    key: str
    title: str
    command: Callable[[Launch], list[str]]
    configuration: str
    http: HttpRequest
    grpc: bool = False
    ours: bool = False
    package: str | None = None
    environment: str | None = None
    workers: int = 1
    variables: Callable[[Launch], Mapping[str, str]] = field(default=lambda launch: {})

    @property
    def form_names(self) -> list[str]:
        """Names of the ways to call it."""
        return [f"{self.title}, HTTP", *([f"{self.title}, gRPC"] if self.grpc else [])]

    @property
    def python(self) -> Path:
        """The Python that runs it.

        Raises:
            PeerEnvironmentError: Its environment has not been created.
        """
        return Path(sys.executable) if self.environment is None else environment_python(self.environment)

    def environment_variables(self, launch: Launch) -> dict[str, str]:
        """Return its environment variables. The pools of all workers together have one thread for each core."""
        return {"POOL_THREADS": str(CORES // self.workers), **self.variables(launch)}

    @property
    def version(self) -> str | None:
        """The version of what is compared; None for this project."""
        if self.package is None:
            return None
        return metadata.version(self.package) if self.environment is None else installed_versions(self.environment)[self.package]


def _triton(key: str) -> Callable[[Launch], list[str]]:
    def command(launch: Launch) -> list[str]:
        ports = [
            "--http-port",
            str(launch.http_port),
            "--grpc-port",
            str(launch.grpc_port),
            "--metrics-port",
            "0",
            "--supervisor-port",
            "0",
        ]
        return [str(launch.python), "-m", "defensemble", "serve", "--repository", str(launch.repositories[key]), *ports, "--drain", "1"]

    return command


def _module(module: str, *arguments: str) -> Callable[[Launch], list[str]]:
    """Return the command of a module; `{http}` and `{grpc}` in its arguments are the ports."""

    def command(launch: Launch) -> list[str]:
        ports = {"http": launch.http_port, "grpc": launch.grpc_port}
        return [str(launch.python), "-m", module, *(argument.format(**ports) for argument in arguments)]

    return command


def _mlserver(launch: Launch) -> list[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": launch.http_port,
        "grpc_port": launch.grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": 2,
        "debug": False,
    }
    (launch.folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": ENSEMBLE, "implementation": f"{_APPS}.mlserver_runtime.EnsembleRuntime"}
    (launch.folder / "model-settings.json").write_text(json.dumps(model))
    return [str(launch.python), "-c", "from mlserver.cli import main; main()", "start", str(launch.folder)]


def _bentoml(launch: Launch) -> list[str]:
    address = ["--host", "127.0.0.1", "--port", str(launch.http_port)]
    return [str(launch.python), "-m", "bentoml", "serve", f"{_APPS}.bentoml_service:Service", *address]


def _ray_variables(launch: Launch) -> dict[str, str]:
    haproxy = launch.folder / "haproxy"
    return {
        "HOME": str(launch.folder),  # where it writes a token
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(launch.folder),
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }


_BYTES = bytes_request("/predict")

FASTAPI_SERVER = Contender(
    "fastapi",
    "FastAPI",
    _module("uvicorn", "benchmarks.serving.fastapi_app:app", "--port={http}", "--log-level=warning"),
    "one uvicorn worker with uvloop and httptools; raw bytes",
    _BYTES,
    package="fastapi",
)
CONTENDERS = (
    Contender(
        PIPELINE,
        "Triton, pipeline",
        _triton(PIPELINE),
        "`defensemble serve` with the defaults: an ensemble of five members and their average; the protocol's binary extension, or gRPC",
        kserve_request(),
        grpc=True,
        ours=True,
    ),
    Contender(
        FUSED,
        "Triton, fused",
        _triton(FUSED),
        "the same with one graph of all members",
        kserve_request(FUSED),
        grpc=True,
        ours=True,
    ),
    FASTAPI_SERVER,
    Contender(
        "litserve",
        "LitServe",
        _module(f"{_APPS}.litserve_server", "{http}"),
        "two workers, as it advises for two cores, with two API servers and its fast queue; raw bytes",
        _BYTES,
        package="litserve",
        environment="litserve",
        workers=2,
    ),
    Contender(
        "bentoml",
        "BentoML",
        _bentoml,
        "two workers with an asynchronous API; raw bytes",
        _BYTES,
        package="bentoml",
        environment="bentoml",
        workers=2,
        variables=lambda launch: {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(launch.folder)},
    ),
    Contender(
        "mlserver",
        "MLServer",
        _mlserver,
        "an inference runtime in two parallel workers; raw bytes to a custom handler over HTTP, raw contents over gRPC",
        _BYTES,
        grpc=True,
        package="mlserver",
        environment="mlserver",
        workers=2,
    ),
    Contender(
        "ray",
        "Ray Serve",
        _module(f"{_APPS}.ray_server", "{http}"),
        "two replicas with dynamic request batching, behind HAProxy with the options for high throughput; raw bytes",
        _BYTES,
        package="ray",
        environment="ray",
        workers=2,
        variables=_ray_variables,
    ),
    Contender(
        "kserve",
        "KServe",
        _module(f"{_APPS}.kserve_server", "--http_port={http}", "--grpc_port={grpc}", "--enable_latency_logging=false"),
        "`ModelServer` with an asynchronous model; the protocol's binary extension, or gRPC",
        kserve_request(),
        grpc=True,
        package="kserve",
        environment="kserve",
    ),
)
PEERS = tuple(contender.key for contender in CONTENDERS if not contender.ours)
