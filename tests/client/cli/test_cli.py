from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from defensemble import (
    Client,
    FakeTransport,
    RetryPolicy,
    wilson,
)
from defensemble.cli import cli
from defensemble.cli.actions.predict import predict_files
from defensemble.cli.actions.probe import ProbeArguments, run_probe
from defensemble.probes import Noise, ProbeOutcome
from defensemble.probes.noise import PAPER_SIGMAS
from tests.support.facts import assert_facts
from tests.support.fakes import ensemble_answer, house
from tests.support.scripted import free_port
from tests.support.tiny import CLASSES, SHAPE, images

Array = np.ndarray[Any, Any]


def fake(transport: FakeTransport | None = None) -> Client:
    return Client("fake", transport=transport or house(), retry=RetryPolicy(max_retries=0))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def write_pictures(folder: Path, count: int = 12) -> Array:
    """Write a labelled folder whose first two pictures have a wrong label; return the values in the order of the files."""
    grey = (images(count) * 255).astype(np.uint8)
    best = ensemble_answer(grey.astype(np.float32) / np.float32(255))["probabilities"].argmax(axis=1)
    for index, picture in enumerate(grey):
        class_folder = folder / CLASSES[best[index] if index >= 2 else (best[index] + 1) % 3]
        class_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(class_folder / f"{index:02d}.png")
    values: Array = grey.astype(np.float32) / np.float32(255)
    return values


def test_predict_prints_the_requested_outputs_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", images(11))
    transport = house()
    predict_files(fake(transport), [str(tmp_path / "x.npy")], ["entropy", "mutual_information", "member_probabilities"], top=2, form="json")
    output = json.loads(capsys.readouterr().out)
    expected = ensemble_answer(images(11))
    assert (output["schema"], output["model"], output["accuracy"]) == ("defensemble.predict/1", "ensemble", None)
    assert len(output["predictions"]) == 11
    for index, row in enumerate(output["predictions"]):
        order = np.argsort(-expected["probabilities"][index])
        assert row["file"] == f"{tmp_path / 'x.npy'}[{index}]"
        assert (row["label"], row["index"]) == (CLASSES[order[0]], order[0])
        assert [entry["index"] for entry in row["top"]] == order[:2].tolist()
        assert row["probability"] == pytest.approx(expected["probabilities"][index].max())
        assert row["entropy"] == pytest.approx(expected["entropy"][index, 0])
        assert row["mutual_information"] == pytest.approx(expected["mutual_information"][index, 0])
        assert np.shape(row["member_probabilities"]) == (2, 3)
    assert list(transport.calls.values()) == [1 + 2]


def test_predict_prints_the_accuracy_of_a_labelled_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures")
    np.save(tmp_path / "x.npy", images(3))
    predict_files(fake(), [str(tmp_path / "x.npy")], ["probabilities"], tmp_path / "pictures", batch_size=5, form="json")
    output = json.loads(capsys.readouterr().out)
    low, high = wilson(10, 12)
    accuracy = {
        "folder": str(tmp_path / "pictures"),
        "model": "ensemble",
        "value": 10 / 12,
        "successes": 10,
        "n": 12,
        "low": low,
        "high": high,
    }
    assert output["accuracy"] == accuracy
    assert ["truth" in row for row in output["predictions"]] == [False] * 3 + [True] * 12
    predict_files(fake(), [], ["probabilities"], tmp_path / "pictures")
    table = capsys.readouterr().out
    assert f"accuracy 0.8333, Wilson 95 % interval {low:.4f} to {high:.4f}, n = 12" in table
    assert "entropy (nats)" in table


def test_predict_prints_the_same_over_both_protocols(triton: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(11))
    outputs = []
    for url in (triton.grpc_url, triton.http_url):
        done = run("predict", "--url", url, str(tmp_path / "x.npy"), "--json", "--top", "3", "--outputs", "entropy, mutual_information")
        assert done.exit_code == 0, done.output
        outputs.append(json.loads(done.output))
    assert outputs[0]["predictions"] == outputs[1]["predictions"]
    table = run("predict", "--url", triton.http_url, str(tmp_path / "x.npy"), "--model", "alpha", "--outputs", "probabilities,entropy")
    assert table.exit_code == 0
    assert "alpha: 11 images" in table.output


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--url", "localhost:8001", "x.npy"], "localhost:8001 | scheme"),
        (["--url", "URL", "missing.npy"], "missing.npy | does not exist"),
        (["--url", "URL", "wied.png"], "wied.png | does not exist | wide.png"),
        (["--url", "wide.png"], "URL is missing | wide.png | http://localhost:8000"),
        (["http://127.0.0.1:1", "x.npy"], "http://127.0.0.1:1 | --url http://127.0.0.1:1"),
        (["--url", "URL", "x.npy", "--model", "nope"], "'nope' | alpha"),
        (["--url", "URL", "x.npy", "--outputs", "logits"], "--outputs | 'logits' | mutual_information"),
        (["--url", "URL", "wide.png"], "wide.png | 9 x 4"),
        (["--url", "URL", "wide.png"], "--resize crop"),
        (["--url", "URL", "wide.png", "--resize"], "'crop', 'squash'"),
        (["--url", "URL", "--resize", "wide.png"], "'crop', 'squash'"),
        (["--url", "URL", "x.npy", "--max-memory", "much"], "4G"),
        (["--url", "URL", "x.npy", "--max-memory", "0"], "4G"),
        (["--url", "URL", "x.npy", "--max-memory", "9" * 400], "4G"),
        (["--url", "URL", "x.npy", "--max-memory", "100"], "x.npy"),
        (["--url", "URL", "wide.png", "--max-memory", "0.5K", "--resize", "crop"], "wide.png"),
        (["--url", "URL", "bright.npy"], "image 0 | bright.npy | 7 to 7"),
        (["--url", "URL", "--labelled", "nowhere"], "nowhere | does not exist"),
        (["--url", "URL", "--labelled", "x.npy"], "x.npy | not a folder"),
        (["--url", "URL"], "--labelled FOLDER"),
    ],
)
def test_predict_refuses_bad_arguments(
    triton: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], facts: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", images(1))
    np.save("bright.npy", np.full((1, *SHAPE), 7, np.float32))
    Image.fromarray(np.zeros((4, 9), np.uint8)).save("wide.png")
    done = run("predict", *(triton.http_url if argument == "URL" else argument for argument in arguments))
    assert done.exit_code in (1, 2)
    assert_facts(done.output, facts)
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_connection_error_is_one_line_and_verbose_prints_its_causes(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(1))
    for scheme in ("grpc", "http"):
        url = f"{scheme}://127.0.0.1:{free_port()}"
        done = run("predict", "--url", url, str(tmp_path / "x.npy"), "--retries", "0")
        assert done.exit_code == 1
        assert done.output.startswith("Error: ")
        assert url in done.output
        assert len(done.output.splitlines()) == 1
        verbose = run("predict", "--url", url, str(tmp_path / "x.npy"), "--retries", "0", "--verbose")
        assert verbose.stderr.splitlines()[-1] == done.stderr.strip()
        assert_facts(verbose.stderr, "caused by | refused")


def write_npz(folder: Path, count: int = 30) -> Path:
    batch = images(count)
    np.savez(folder / "data.npz", images=batch, labels=ensemble_answer(batch)["probabilities"].argmax(axis=1))
    return folder / "data.npz"


def probe(
    transport: FakeTransport, source: Path | str, out: Path, *, console: Console | None = None, sigmas: Any = PAPER_SIGMAS, **options: Any
) -> ProbeOutcome:
    """Run the noise probe on a transport."""
    noise = Noise(tuple(sigmas), seed=options.get("seed", 0))
    return run_probe(noise, ProbeArguments("fake", str(source), out, transport=transport, **options), console=console)


@contextmanager
def quiet_console() -> Iterator[Console]:
    with Path("/dev/null").open("w") as nowhere:
        yield Console(record=True, width=200, file=nowhere)


def test_quiet_silences_progress_and_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble._client.client.transport_from_url", lambda url, options: house())
    write_pictures(tmp_path / "pictures")
    (next((tmp_path / "pictures").iterdir()) / "notes.txt").touch()
    options = ("--url", "http://fake", "--labelled", str(tmp_path / "pictures"), "--json")
    assert "note: " in run("predict", *options).stderr
    done = run("predict", *options, "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout)["accuracy"]["n"] == 12


def test_doctor_prints_its_checks_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = json.loads(run("doctor", "--json").stdout)
    assert output["schema"] == "defensemble.doctor/1"
    assert {"platform", "python"} <= {check["name"].lower() for check in output["checks"]}
    assert all(set(check) == {"name", "status", "text", "fix"} for check in output["checks"])
