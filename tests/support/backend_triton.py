"""A tritonserver for these tests: on free ports, its models loaded by name, gone with the test run whatever ends it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tritonclient.grpc as grpcclient
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0

# Holds the read end of a pipe from the test run: its end, of whatever kind, is an end of file here, and the server's end.
_SUPERVISOR = """
import os, select, signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
print(child.pid, file=sys.stderr, flush=True)
ended = os.pidfd_open(child.pid)
if ended not in select.select([0, ended], [], [])[0]:
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
sys.exit(child.wait())
"""


def tritonserver() -> tuple[Path, Path]:
    """The wheel's binary and the folder of its libraries."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None, "these tests need the Triton wheel: pip install --no-deps nvidia-pytriton==0.7.0"
    assert spec.submodule_search_locations is not None
    package = Path(spec.submodule_search_locations[0])
    return package / "tritonserver" / "bin" / "tritonserver", package.parent / "nvidia_pytriton.libs"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Triton:
    """A running server and one gRPC client of it; a context manager, whose end asserts that nothing is left."""

    def __init__(
        self,
        folder: Path,
        backend_directory: Path,
        backend_config: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        *,
        verbose: bool = False,
        cores: int | None = None,
    ) -> None:
        binary, libraries = tritonserver()
        self.repository = folder / "models"
        self.repository.mkdir(parents=True)
        self.log_path = folder / "triton.log"
        self.grpc_port, self.http_port = free_ports(2)
        self._names = itertools.count()
        command = [
            str(binary),
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            f"--backend-directory={backend_directory}",
            "--grpc-address=127.0.0.1",
            "--http-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            f"--http-port={self.http_port}",
            "--allow-metrics=false",
            "--exit-timeout-secs=2",
            f"--log-verbose={int(verbose)}",
            *(f"--backend-config=onnxruntime,{key}={value}" for key, value in backend_config.items()),
        ]
        if cores is not None:
            available = sorted(os.sched_getaffinity(0))
            assert len(available) >= cores, f"this test needs {cores} cores"
            command = ["taskset", "--cpu-list", ",".join(map(str, available[:cores])), *command]
        inherited = {key: value for key, value in os.environ.items() if key not in ("ONNXRUNTIME_LIBRARY", "LD_PRELOAD")}
        # The supervisor does not get this environment: preloading is only for the server.
        given = {"LD_LIBRARY_PATH": str(libraries), **(environment or {})}
        supervisor = [sys.executable, "-c", _SUPERVISOR, "/usr/bin/env", *(f"{key}={value}" for key, value in given.items())]
        with self.log_path.open("wb") as log:
            self._supervisor = subprocess.Popen(
                [*supervisor, *command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=inherited
            )
        self.client = grpcclient.InferenceServerClient(f"127.0.0.1:{self.grpc_port}")

    def __enter__(self) -> Triton:
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers():
            if self._supervisor.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"Triton did not start:\n{self.log()[-4000:]}")
            time.sleep(0.02)
        self.pid = int(self.log().splitlines()[0])
        return self

    def __exit__(self, *_: object) -> None:
        crashed = self._supervisor.poll()
        status = self.stop()
        assert crashed is None, f"Triton ended by itself, exit status {crashed}:\n{self.log()[-4000:]}"
        # What is finalized at the end can go wrong too.
        assert status == 0, f"Triton ended with exit status {status}:\n{self.log()[-4000:]}"
        assert not Path(f"/proc/{self.pid}").exists()
        assert not listens(self.grpc_port)
        assert not listens(self.http_port)

    def stop(self) -> int:
        self.client.close()
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Wait until the server has ended; return its exit status."""
        return self._supervisor.wait(STOP_DEADLINE_S)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def alive(self) -> bool:
        # Not "ready": Triton is not, for ever after, once a model failed to load.
        return self._supervisor.poll() is None and self._answers()

    def _answers(self) -> bool:
        try:
            return bool(self.client.is_server_live())
        except InferenceServerException:
            return False

    def write(self, config: Mapping[str, Any], model: onnx.ModelProto | bytes) -> str:
        """Write a model of a new name; return the name."""
        name = f"m{next(self._names)}"
        stated = json_format.ParseDict({"backend": "onnxruntime", **config, "name": name}, model_config_pb2.ModelConfig())
        version = self.repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        (self.repository / name / "config.pbtxt").write_text(text_format.MessageToString(stated))
        return name

    def load(self, config: Mapping[str, Any], model: onnx.ModelProto | bytes) -> str:
        """Write and load a model of a new name; return the name."""
        name = self.write(config, model)
        self.client.load_model(name)
        return name

    def load_error(self, config: Mapping[str, Any], model: onnx.ModelProto | bytes) -> str:
        """The text with which Triton refuses to load a model."""
        name = self.write(config, model)
        try:
            self.client.load_model(name)
        except InferenceServerException as error:
            return str(error.message())
        raise AssertionError(f"{name} loaded")

    def infer(self, name: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: list[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        return arrays(self.client.infer(name, infer_inputs(inputs), outputs=infer_outputs(outputs)))

    def statistics(self, name: str) -> dict[str, int]:
        """Counters of version 1: inference_count, execution_count, success, fail; those that are 0 too."""
        entry = self.client.get_inference_statistics(name, as_json=True)["model_stats"][0]
        return {
            "inference_count": int(entry.get("inference_count", 0)),
            "execution_count": int(entry.get("execution_count", 0)),
            **{kind: int(entry["inference_stats"].get(kind, {}).get("count", 0)) for kind in ("success", "fail")},
        }

    def batches(self, name: str) -> dict[int, int]:
        """How many runs there were of each batch size."""
        entry = self.client.get_inference_statistics(name, as_json=True)["model_stats"][0]
        return {int(batch["batch_size"]): int(batch["compute_infer"]["count"]) for batch in entry.get("batch_stats", [])}


def infer_inputs(inputs: Mapping[str, npt.NDArray[Any]]) -> list[grpcclient.InferInput]:
    result = []
    for name, array in inputs.items():
        result.append(grpcclient.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        result[-1].set_data_from_numpy(array)
    return result


def infer_outputs(names: list[str] | None) -> list[grpcclient.InferRequestedOutput] | None:
    return None if names is None else [grpcclient.InferRequestedOutput(name) for name in names]


def arrays(result: grpcclient.InferResult) -> dict[str, npt.NDArray[Any]]:
    return {output.name: np.asarray(result.as_numpy(output.name)) for output in result.get_response().outputs}


def records(path: Path) -> list[dict[str, Any]]:
    """What the recording stand-in of ONNX Runtime wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
