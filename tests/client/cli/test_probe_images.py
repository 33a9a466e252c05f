"""The verbs of `defensemble probe` for changed images, from options to result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from defensemble import FakeModel, FakeTransport
from defensemble.cli import cli
from tests.support.facts import assert_facts
from tests.support.tiny import CLASSES, images, logits

SHAPE = (1, 8, 8)
URL = "http://fake"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(lambda images: {"logits": logits(1, images).astype(np.float32)}, SHAPE, class_names=CLASSES, max_batch_size=8)
    monkeypatch.setattr("defensemble.probes.targets.transport_from_url", lambda url, options: FakeTransport({"net": model}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    batch = images(24, shape=SHAPE)
    np.savez(tmp_path / "data.npz", images=batch, labels=logits(1, batch).argmax(axis=1))
    return tmp_path / "data.npz"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["probe", *map(str, arguments)], terminal_width=200)


def result(path: Path) -> Any:
    return json.loads(path.read_text())


def test_shuffle(tmp_path: Path, data: Path) -> None:
    done = run("shuffle", URL, "--dataset", data, "--k", "2,8", "--out", tmp_path / "shuffle.json")
    assert done.exit_code == 0, done.output
    report = result(tmp_path / "shuffle.json")
    assert report["settings"]["k"] == [2, 8]
    assert [entry["name"] for entry in report["targets"][0]["conditions"]] == ["k 2", "k 8"]
    done = run("shuffle", URL, "--dataset", data, "--k", "3", "--out", tmp_path / "other.json")
    assert done.exit_code == 1
    assert_facts(done.output, "8 x 8 | 3 x 3 | 2, 4, 8")


@pytest.mark.slow
def test_corruptions(tmp_path: Path, data: Path) -> None:
    options = ("--dataset", data, "--corruptions", "fog,impulse_noise", "--severities", "1,5", "--cache", tmp_path / "cache")
    reports = []
    for _ in range(2):
        done = run("corruptions", URL, *options, "--out", tmp_path / "corruptions.json")
        assert done.exit_code == 0, done.output
        reports.append(result(tmp_path / "corruptions.json")["targets"])
    assert reports[0] == reports[1]
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4
    assert reports[0][0]["details"]["mean_error_by_corruption"].keys() == {"fog", "impulse_noise"}


def test_folders(tmp_path: Path) -> None:
    for number, (shape, texture) in enumerate([("circle", "square"), ("square", "triangle"), ("triangle", "circle")]):
        for file in (f"conflict/{shape}/{shape}{number}-{texture}1.png", f"stylised/{shape}/{number}.png"):
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((images(1, number, SHAPE)[0, 0] * 255).astype(np.uint8)).save(tmp_path / file)
    out = tmp_path / "folders.json"
    done = run("folders", URL, "--stylised", tmp_path / "stylised", "--cue-conflict", tmp_path / "conflict", "--out", out)
    assert done.exit_code == 0, done.output
    assert_facts(done.output, "net | stylised | cue conflict | shape bias")
    entries = result(out)["targets"][0]["details"]["folders"]
    assert [(entry["kind"], entry.get("accuracy", entry.get("shape"))["n"]) for entry in entries] == [("stylised", 3), ("cue conflict", 3)]
    assert entries[0]["accuracy"] == entries[1]["shape"]  # the same pixels


def test_folders_need_a_folder_with_classes_of_the_model(tmp_path: Path) -> None:
    assert_facts(run("folders", URL).output, "--stylised | --cue-conflict")
    (tmp_path / "stylised/dog").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "stylised/dog/1.png")
    done = run("folders", URL, "--stylised", tmp_path / "stylised", "--out", tmp_path / "folders.json")
    assert done.exit_code == 1
    assert_facts(done.output, "dog | circle, square, triangle | 'net'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stylised"]  # neither a result nor a ledger


def test_cue_conflict(tmp_path: Path, data: Path) -> None:
    options = ("--dataset", data, "--images", "6")
    details = []
    for _ in range(2):
        done = run("cue-conflict", URL, *options, "--out", tmp_path / "cue.json")
        assert done.exit_code == 0, done.output
        report = result(tmp_path / "cue.json")
        details.append(report["targets"][0]["details"]["folders"])
    assert details[0] == details[1]
    assert [entry["kind"] for entry in details[0]] == ["cue conflict", "shape only", "texture only"]
    assert_facts(done.output, "shape only | texture only | neither")
    assert report["data"]["n"] == 18
    assert (tmp_path / "cue-conflict/manifest.json").is_file()
    assert report["targets"][0]["queries"]["counted"] == 18
