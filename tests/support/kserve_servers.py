"""Real servers of the KServe v2 protocol other than Triton: MLServer and KServe's ModelServer, each in a Python environment of its own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.environments import create_environment, environment_folder
from tests.support.scripted import free_port
from tests.support.tiny import Array, weights

SOURCES = Path(__file__).parent / "kserve"
KINDS = ("mlserver", "kserve")
SHAPE = (3, 8, 8)
CLASSES = 5
SEED = 16

MODELS: dict[str, tuple[str, list[int] | None]] = {  # the output, and the shape of the input in the metadata, if there are any
    "linear": ("logits", [-1, *SHAPE]),
    "softmax": ("probabilities", [-1, *SHAPE]),
    "flexible": ("logits", [-1, 3, -1, -1]),
    "bare": ("logits", None),
    "broken": ("logits", [-1, *SHAPE]),  # fails at each request
}
_VERSIONS = {"softmax": "v2.1"}  # of MLServer, which takes any string; KServe's has no versions
_HTTP_REQUEST = re.compile(r'"(GET|POST) (\S+) HTTP/1\.1" (\d+)')
_GRPC_REQUEST = re.compile(r"(?:mlserver\.grpc\] INFO -|grpc method:) /inference\.GRPCInferenceService/(\w+)")
_START_S = 60.0
_STOP_S = 10.0


class KserveServer:
    """A running server. `url` is that of a protocol, `http` or `grpc`."""

    def __init__(self, kind: str, ports: dict[str, int], log: Path) -> None:
        self.kind = kind
        self.ports = ports
        self._log = log

    def url(self, protocol: str) -> str:
        return f"{protocol}://127.0.0.1:{self.ports[protocol]}"

    def version(self, model: str) -> str:
        """The version with which answers of a model come."""
        return _VERSIONS.get(model, "") if self.kind == "mlserver" else ""

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the requests that the server has logged while the block ran: `POST /v2/models/linear/infer 200`, `ModelInfer`."""
        counts: Counter[str] = Counter()
        start = self._mark()
        yield counts
        end = self._mark()
        text = self._log.read_bytes()[start:end].decode()
        counts.update(_GRPC_REQUEST.findall(text))
        counts.update(" ".join(found) for found in _HTTP_REQUEST.findall(text) if "/v2/marks/" not in found[1])

    def _mark(self) -> int:
        """Leave a line in the log, which an earlier request cannot follow, and return where the log ends then."""
        path = f"/v2/marks/{uuid.uuid4().hex}"
        _get(self, path)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            content = self._log.read_bytes()
            if path.encode() in content:
                return len(content)
            time.sleep(0.01)
        raise AssertionError(f"{self._log} has no line for GET {path}")


@contextmanager
def running(kind: str, folder: Path) -> Iterator[KserveServer]:
    """Start a server of `KINDS`, which is one process, with the models of `MODELS`, and stop it.

    Args:
        kind: The kind of server.
        folder: An empty folder for its files and its log.
    """
    python = environment(kind)
    ports = {"http": free_port(), "grpc": 0}
    while ports["grpc"] in (0, ports["http"]):
        ports["grpc"] = free_port()
    command = _write_files(kind, folder, ports)
    log = folder / "log"
    with log.open("wb") as output:
        # The kernel ends the server with the thread that started it, also if that is killed.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", str(python), *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PYTHONPATH": str(folder)},
        )
    try:
        server = KserveServer(kind, ports, log)
        _wait_ready(server, process, log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)


def logits(images: Array) -> Array:
    """What each model computes, by numpy in float64."""
    count, channels, height, width = images.shape
    small = images.astype(np.float64).reshape(count, channels, 8, height // 8, 8, width // 8).mean(axis=(3, 5))
    answer: Array = small.reshape(count, -1) @ weights(SEED, SHAPE, CLASSES).astype(np.float64)
    return answer


def environment(kind: str, sources: Path = SOURCES) -> Path:
    """The Python of a kind of server. Its environment is created at the first call and kept in the user's cache.

    Args:
        kind: The kind.
        sources: The folder of `KIND-requirements.txt`.
    """
    requirements = sources / f"{kind}-requirements.txt"
    folder = environment_folder(kind, requirements, "test-environments")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of these tests may be creating it
        if not folder.exists():
            create_environment(requirements, folder, compiled=False)  # few of the modules are imported
    return folder / "bin" / "python"


def _write_files(kind: str, folder: Path, ports: dict[str, int]) -> list[str]:
    """Write the models, and return the command that serves them, without the Python."""
    np.save(folder / "weights.npy", weights(SEED, SHAPE, CLASSES))
    if kind == "kserve":
        models = {name: {"output": output, "metadata": _metadata(output, shape)} for name, (output, shape) in MODELS.items()}
        (folder / "models.json").write_text(json.dumps(models))
        return [str(SOURCES / "kserve_server.py"), "weights.npy", "models.json", str(ports["http"]), str(ports["grpc"])]
    shutil.copy(SOURCES / "mlserver_classifier.py", folder)
    settings = {
        "host": "127.0.0.1",
        "http_port": ports["http"],
        "grpc_port": ports["grpc"],
        "metrics_endpoint": None,
        "parallel_workers": 0,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    for name, (output, shape) in MODELS.items():
        parameters = {"uri": str(folder / "weights.npy"), "extra": {"output": output}, "version": _VERSIONS.get(name)}
        model = {"name": name, "implementation": "mlserver_classifier.LinearClassifier", "parameters": parameters}
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(model | _metadata(output, shape)))
    return ["-c", "from mlserver.cli import main; main()", "start", str(folder)]


def _metadata(output: str, shape: list[int] | None) -> dict[str, Any]:
    if shape is None:
        return {}
    tensors = {"inputs": ("images", shape), "outputs": (output, [-1, CLASSES])}
    return {key: [{"name": name, "datatype": "FP32", "shape": sizes}] for key, (name, sizes) in tensors.items()}


def _wait_ready(server: KserveServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not _is_ready(server):
        assert process.poll() is None, f"{server.kind} ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"{server.kind} was not ready within {_START_S:g} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.05)


def _is_ready(server: KserveServer) -> bool:
    """Whether the server reports each model as ready, and listens for gRPC."""
    try:
        socket.create_connection(("127.0.0.1", server.ports["grpc"]), 5).close()
        return all(_get(server, f"/v2/models/{name}/ready") == 200 for name in MODELS)
    except OSError:
        return False


def _get(server: KserveServer, path: str) -> int:
    connection = HTTPConnection("127.0.0.1", server.ports["http"], timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()
