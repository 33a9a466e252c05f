"""What the tests of a served Triton share: how one is started, asked and watched."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

import numpy as np
import urllib3
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from defensemble_server import ServeOptions, Server
from tests.support import backend_graphs as graphs, tiny

FREE = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)


def ask(server: Server, model: str, images: tiny.Array, output: str, *, timeout_s: float = 3.0) -> tiny.Array:
    body = {
        "inputs": [{"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}],
        "outputs": [{"name": output}],
    }
    answer = urllib3.request("POST", f"{server.http_url}/v2/models/{model}/infer", json=body, timeout=timeout_s)
    assert answer.status == 200, answer.data
    got = answer.json()["outputs"][0]
    values: tiny.Array = np.array(got["data"], np.float32).reshape(got["shape"])
    return values


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def gone_within(repository: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while tiny.leftovers(repository):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def listening_sockets(*ports: int) -> set[str]:
    """Return the inode numbers of the sockets that listen on any of these TCP ports; another process on the same port has others."""
    return {number for number, port in _listening("self").items() if port in ports}


def closed_within(sockets: set[str], seconds: float) -> bool:
    """Whether none of these sockets listens any more. Those of a process are closed a moment after it has lost its command line."""
    deadline = time.monotonic() + seconds
    while sockets & set(_listening("self")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def listening_ports(pid: int) -> set[int]:
    """All TCP ports that a process listens on, as the kernel lists them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the folder was listed
            sockets.add(os.readlink(descriptor))
    return {port for number, port in _listening(pid).items() if f"socket:[{number}]" in sockets}


def _listening(pid: int | str) -> dict[str, int]:
    """The listening TCP sockets of a process's network: number and port of each."""
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
    return {fields[9]: int(fields[1].rpartition(":")[2], 16) for fields in rows if fields[3] == "0A"}


def without_digest(repository: Path, name: str, version: int = 1) -> Path:
    """Take a version's digest out of a member's configuration, as for a foreign model; returns its model file."""
    from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config

    path = repository / name / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), name)
    del config.parameters[f"sha256.{version}"]
    path.write_bytes(pbtxt_from_config(config))
    return repository / name / str(version) / "model.onnx"


def write_slow_model(repository: Path) -> Path:
    """Add a model `slow`, a run of which takes about a second for each million of `rounds`."""
    config = json_format.ParseDict({"name": "slow", "backend": "onnxruntime", **graphs.LOOP_CONFIG}, model_config_pb2.ModelConfig())
    (repository / "slow/1").mkdir(parents=True)
    (repository / "slow/1/model.onnx").write_bytes(graphs.loop().SerializeToString())
    (repository / "slow/config.pbtxt").write_text(text_format.MessageToString(config))
    return repository


def processor_ticks(pid: int) -> int:
    """The processor time that a process has taken, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
