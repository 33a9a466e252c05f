"""The whole flow on the command line: train, export, serve, predict, probe, stop; and the demo."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from defensemble import wilson
from defensemble_server import read_states, stop_server
from defensemble_server.process.state import find_state, process_start
from defensemble_server.runtime.find import EMBEDDED_CORE
from defensemble_training import load_dataset, read_metadata
from tests.support import tiny
from tests.support.calls import closed_within, listening_sockets
from tests.support.command_line import Address, address_from, environment, finish, run, start, succeed
from tests.support.facts import assert_facts

MEMBERS = {"half": "0.5", "standard": "1.0"}
SIZE = 16


@dataclass(frozen=True)
class Flow:
    """The files and the output of the commands, and the running server."""

    folder: Path
    trained: dict[str, str]
    exported: str
    address: Address

    @property
    def repository(self) -> Path:
        return self.folder / "repository"


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """Train two networks together, export them, and serve them until the last test of this module ends."""
    folder = tmp_path_factory.mktemp("flow")
    options = ("--epochs", "2", "--width", "8", "--threads", "1")
    runs = {name: start("train", "--keep", keep, *options, f"{name}.safetensors", cwd=folder) for name, keep in MEMBERS.items()}
    done = {name: finish(process) for name, process in runs.items()}
    assert {name: process.returncode for name, process in done.items()} == dict.fromkeys(MEMBERS, 0), done
    exported = succeed("export", *(f"{name}.safetensors" for name in MEMBERS), "--repository", "repository", cwd=folder)
    address = address_from(succeed("serve", "--repository", "repository", "--detach", "--free-ports", cwd=folder))
    try:
        yield Flow(folder, {name: process.stdout for name, process in done.items()}, exported, address)
    finally:
        stop_server(address.grpc_port)
        assert tiny.leftovers(folder / "repository") == []


@pytest.fixture(scope="module")
def digits() -> tuple[tiny.Array, tiny.Array]:
    """Test images as a PNG file holds them (in steps of 1/255), and their labels."""
    dataset = load_dataset("digits", SIZE)
    grey = np.round(dataset.test.images()[:40] * 255).astype(np.uint8)
    return grey.astype(np.float32) / np.float32(255), dataset.test.labels[:40]


def member_probabilities(repository: Path, images: tiny.Array) -> dict[str, tiny.Array]:
    """Return the members' probabilities, (N, 10) each, computed with ONNX Runtime from the files that Triton serves."""
    outputs = {}
    for name in MEMBERS:
        session = onnxruntime.InferenceSession(repository / name / "1/model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images})
        outputs[name] = tiny.softmax(logits.astype(np.float64))
    return outputs


def predicted(flow: Flow, url: str, *arguments: str | Path) -> list[dict[str, Any]]:
    output = json.loads(succeed("predict", "--url", url, *arguments, "--json", cwd=flow.folder))
    assert (output["schema"], output["model"]) == ("defensemble.predict/1", "ensemble")
    rows: list[dict[str, Any]] = output["predictions"]
    return rows


def probabilities(rows: list[dict[str, Any]]) -> tiny.Array:
    return np.array([[entry["probability"] for entry in sorted(row["top"], key=lambda entry: entry["index"])] for row in rows])


def test_train_prints_the_record_of_the_checkpoint(flow: Flow) -> None:
    for name, keep in MEMBERS.items():
        metadata = read_metadata(flow.folder / f"{name}.safetensors")
        assert (metadata.spec.keep, metadata.spec.width, metadata.spec.blocks) == (float(keep), 8, (0, 1, 2))
        correct = round(metadata.record.accuracy * 359)
        assert f"test accuracy {correct / 359:.4f} ({correct} of 359 images)" in flow.trained[name]
        masks = "no masks: a standard network" if keep == "1.0" else f"10 masks, digest {metadata.mask_digest}"
        assert masks in flow.trained[name]
        assert correct > 359 / 5, "two epochs are more than twice as good as guessing"


def test_export_prints_the_models_that_it_wrote(flow: Flow) -> None:
    written = re.findall(r"^repository: wrote (.*)$", flow.exported, re.MULTILINE)[0].split(", ")
    assert sorted(path.name for path in flow.repository.iterdir()) == written
    assert [re.sub("[0-9a-f]{16}$", "DIGEST", name) for name in written] == [
        "average_DIGEST",
        "ensemble",
        "half",
        "standard",
    ]
    expected = {"repository", *(f"{name}.{kind}" for name in MEMBERS for kind in ("run", "safetensors"))}
    assert {path.name for path in flow.folder.iterdir() if path.name.startswith((".", "repository", *MEMBERS))} == expected


def test_the_ensemble_averages_its_members_over_both_protocols(flow: Flow, digits: tuple[tiny.Array, tiny.Array]) -> None:
    images, _ = digits
    np.save(flow.folder / "images.npy", images)
    over_grpc, over_http = (predicted(flow, url, "images.npy", "--top", "10") for url in (flow.address.grpc, flow.address.http))
    assert over_grpc == over_http
    assert [row["file"] for row in over_grpc] == [f"images.npy[{index}]" for index in range(len(images))]
    expected = np.mean(list(member_probabilities(flow.repository, images).values()), axis=0)
    assert np.abs(probabilities(over_grpc) - expected).max() < 1e-6
    assert [row["index"] for row in over_grpc] == expected.argmax(axis=1).tolist()
    assert [row["label"] for row in over_grpc] == [str(index) for index in expected.argmax(axis=1)]


def test_uncertainty_is_computed_from_the_members(flow: Flow, digits: tuple[tiny.Array, tiny.Array]) -> None:
    images = digits[0][:5]
    np.save(flow.folder / "five.npy", images)
    rows = predicted(flow, flow.address.http, "five.npy", "--outputs", "entropy,mutual_information,member_probabilities")
    members = np.stack(list(member_probabilities(flow.repository, images).values()))

    def entropy(distribution: tiny.Array) -> tiny.Array:
        nats: tiny.Array = -(distribution * np.log(distribution)).sum(-1)
        return nats

    assert np.abs(np.array([row["member_probabilities"] for row in rows]) - members.transpose(1, 0, 2)).max() < 1e-6
    assert np.abs([row["entropy"] for row in rows] - entropy(members.mean(0))).max() < 1e-5
    information = entropy(members.mean(0)) - entropy(members).mean(0)
    assert np.abs(np.ravel([row["mutual_information"] for row in rows]) - information).max() < 1e-5


@pytest.fixture(scope="module")
def pictures(flow: Flow, digits: tuple[tiny.Array, tiny.Array]) -> Path:
    """The images as PNG files, in a folder for each class."""
    folder = flow.folder / "pictures"
    for number, (image, label) in enumerate(zip(*digits, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().astype(np.uint8)).save(folder / str(label) / f"{number:02}.png")
    return folder


def test_image_files_are_predicted_as_arrays_are(flow: Flow, pictures: Path, digits: tuple[tiny.Array, tiny.Array]) -> None:
    files = sorted(pictures.glob("*/*.png"), key=lambda path: path.name)
    over_grpc, over_http = (predicted(flow, url, *files, "--top", "10") for url in (flow.address.grpc, flow.address.http))
    assert over_grpc == over_http
    assert [row["file"] for row in over_grpc] == [str(file) for file in files]
    expected = np.mean(list(member_probabilities(flow.repository, digits[0]).values()), axis=0)
    assert np.abs(probabilities(over_grpc) - expected).max() < 1e-6


def test_predict_prints_the_accuracy_of_a_labelled_folder(flow: Flow, pictures: Path, digits: tuple[tiny.Array, tiny.Array]) -> None:
    images, labels = digits
    outputs = member_probabilities(flow.repository, images)
    for model, scores in {"ensemble": np.mean(list(outputs.values()), axis=0), "half": outputs["half"]}.items():
        correct = int((scores.argmax(axis=1) == labels).sum())
        low, high = wilson(correct, 40)
        printed = succeed("predict", "--url", flow.address.grpc, "--labelled", pictures, "--model", model, cwd=flow.folder)
        assert f"accuracy {correct / 40:.4f}, Wilson 95 % interval {low:.4f} to {high:.4f}, n = 40" in printed
        assert f"{model}: 40 images" in printed


def test_probe_writes_rates_with_intervals_and_provenance(flow: Flow) -> None:
    options = ("--dataset", "digits", "--limit", "40", "--sigmas", "8,32", "--out", "noise.json")
    printed = succeed("probe", "noise", flow.address.grpc, *options, cwd=flow.folder)
    assert_facts(printed, "3 models | 360 queries | images/s | Gaussian noise: accuracy, %")
    assert printed.rstrip().endswith("\nwrote noise.json")
    result = json.loads((flow.folder / "noise.json").read_text())
    assert (result["schema"], result["probe"], result["seed"]) == ("defensemble.probe/2", "noise", 0)
    assert (result["input"], result["answers"], result["settings"]["sigmas"]) == ("float32", "probabilities", [8.0, 32.0])
    assert {check["status"] for check in result["checks"]} == {"PASS"}
    assert not (flow.folder / "noise.ledger").exists()
    assert (result["data"]["name"], result["data"]["n"], result["url"]) == ("digits", 40, flow.address.grpc)
    assert result["server"] == {"name": "triton", "version": EMBEDDED_CORE}
    assert result["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert {"defensemble", "python", "numpy", "tritonclient"} <= set(result["versions"])
    assert {"git_commit", "measured_at", "threat_model", "paper", "interval"} <= set(result)
    assert [(target["name"], target["role"], target["failure"]) for target in result["targets"]] == [
        ("ensemble", "ensemble", None),
        ("half", "member", None),
        ("standard", "member", None),
    ]
    for target in result["targets"]:
        assert target["clean"]["n"] == 40
        assert target["queries"]["counted"] == 3 * 40
        assert len(target["identity"]["config_sha256"]) == 64
        assert [level["name"] for level in target["conditions"]] == ["sigma 8", "sigma 32"]
        rates = [
            target["clean"],
            *(level[kind] for level in target["conditions"] for kind in ("accuracy", "defense_rate", "accuracy_on_common")),
        ]
        for rate in rates:
            assert rate["value"] == rate["successes"] / rate["n"]
            assert (rate["low"], rate["high"]) == pytest.approx(wilson(rate["successes"], rate["n"]))
        assert target["conditions"][0]["accuracy_on_common"]["n"] == result["data"]["n_common"]
        assert target["conditions"][0]["defense_rate"]["n"] == target["clean"]["successes"]


def test_doctor_finds_the_server(flow: Flow) -> None:
    done = run("doctor", "--url", flow.address.http, cwd=flow.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^PASS  server {flow.address.grpc_port} .*serves {re.escape(str(flow.repository))} ", done.stdout, re.MULTILINE)
    warned = rf"^WARN  {re.escape(flow.address.http)} +core {re.escape(EMBEDDED_CORE)} has known faults:$"
    assert re.search(warned, done.stdout, re.MULTILINE)


@pytest.mark.usefixtures("no_shared_memory_left")
def test_serve_stop_leaves_nothing_running(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    printed = succeed("serve", "--repository", repository, "--detach", "--free-ports", "--drain", "1", cwd=tmp_path)
    address = address_from(printed)
    try:
        assert re.search(r"^ready after \d+\.\d s, serving alpha, average_\w+, beta, ensemble$", printed, re.MULTILINE)
        state = find_state(address.grpc_port)
        sockets = listening_sockets(state.http_port, state.grpc_port, state.metrics_port)
        assert len(sockets) == 3
        (stop,) = re.findall(r"^stop it: defensemble (.*)$", printed, re.MULTILINE)
        output = succeed(*stop.split(), cwd=tmp_path)
    except BaseException:
        stop_server(address.grpc_port)
        raise
    assert_facts(output, f"{repository} | gRPC port {address.grpc_port}")
    assert tiny.leftovers(repository) == []
    assert process_start(state.pid) is None
    assert address.grpc_port not in [other.grpc_port for other in read_states()]
    assert list(tmp_path.iterdir()) == [repository]
    assert closed_within(sockets, 10)


@pytest.mark.slow
def test_the_commands_that_demo_prints_work(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed, and demo prints a call of it")
    # A shell would split this name without quotes.
    printed = succeed("demo", "--epochs", "1", "--keep-serving", "--folder", "my runs", cwd=tmp_path)
    address = address_from(printed)
    try:
        (folder,) = (tmp_path / "my runs").iterdir()
        check_demo(printed, folder, address, tmp_path)
    finally:
        if address.grpc_port in [state.grpc_port for state in read_states()]:
            stop_server(address.grpc_port)
    assert tiny.leftovers(folder / "model_repository") == []


def check_demo(printed: str, folder: Path, address: Address, cwd: Path) -> None:
    images = load_dataset("digits", SIZE).test.images()[:8]
    names = ["keep0.1", "keep0.3", "keep0.3-other", "keep0.5", "keep0.7", "standard"]
    assert re.findall(r"^  (\S+) +\d+ of 359 test images correct, \d+\.\d s$", printed, re.MULTILINE) == names
    assert sorted(path.stem for path in (folder / "checkpoints").iterdir()) == sorted(names)
    result = json.loads((folder / "noise.json").read_text())
    assert [(target["name"], target["role"]) for target in result["targets"]] == [
        ("ensemble", "ensemble"),
        *((name, "member") for name in names[:-1]),
        ("standard", "other"),
    ]
    assert (result["data"]["n"], len(result["conditions"])) == (359, 10)
    assert ", largest difference 0\n" in printed
    assert re.search(r"^done in \d+ s; all files are in my runs/", printed, re.MULTILINE)

    (curl,) = re.findall(r"^(curl .*)$", printed, re.MULTILINE)
    called = subprocess.run(["sh", "-c", curl], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert called.returncode == 0, called.stderr
    (output,) = json.loads(called.stdout)["outputs"]
    assert len(output["data"]) == 3
    assert output["name"] == "probabilities"
    best_by_curl = output["data"][0].split(":")[2]

    snippet = re.split(r"^Or with Python \(.*\):$", printed, flags=re.MULTILINE)[1]
    called = subprocess.run([sys.executable, "-"], cwd=cwd, input=snippet, env=environment(), capture_output=True, text=True, timeout=60)
    assert called.returncode == 0, called.stderr
    labels = re.findall(r"'(\d)'", called.stdout)
    assert len(labels) == len(images)
    assert labels[0] == best_by_curl
    for protocol in ("HTTP", "gRPC"):
        assert f"predictions over {protocol}  {' '.join(labels)}" in printed

    (stop,) = re.findall(r"^stop it: (.*)$", printed, re.MULTILINE)
    stopped = subprocess.run(shlex.split(stop), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert stopped.returncode == 0, stopped.stderr
    assert address.grpc_port not in [state.grpc_port for state in read_states()]
