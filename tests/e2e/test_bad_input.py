"""Errors of train, export, predict and probe: one error message, an exit status that is not 0, and no partial files."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from defensemble.cli import cli
from defensemble_server import Server
from tests.support import tiny
from tests.support.broken import (
    broken_checkpoint,
    content,
    fill,
    make_read_only,
    small_disk,
    untrained_checkpoint,
)
from tests.support.command_line import TIMEOUT_S, environment, error_message, start
from tests.support.facts import assert_facts
from tests.support.scripted import cut_off, free_port, http, scripted, sends

QUICK = ("--width", "2", "--size", "8", "--epochs", "1", "--batch-size", "256", "--threads", "1")


def invoke(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `defensemble ARGUMENTS` in this process, which has imported torch already."""
    words = list(map(str, arguments))
    result = CliRunner().invoke(cli, words, prog_name="defensemble")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


# Training


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (["--keep", "1.5"], "keep | (0, 1] | 1.5"),
        (["--keep", "0"], "keep | (0, 1] | 0.0"),
        (["--keep", "-0.3"], "keep | (0, 1] | -0.3"),
        (["--keep", "nan"], "keep | (0, 1] | nan"),
        (["--arch", "lenet"], "--arch | 'resnet18' | 'wrn32_4' | 'lenet'"),
        (["--dataset", "cifar11"], "'cifar11' | digits"),
        (["--pattern", "stripes"], "--pattern | 'neuron', 'channel', 'shared' | 'stripes'"),
    ],
)
def test_train_refuses_bad_values(tmp_path: Path, options: list[str], facts: str) -> None:
    assert_facts(error_message(invoke("train", *QUICK, *options, tmp_path / "a.safetensors")), facts)
    assert content(tmp_path) == {}


def test_train_on_a_full_disk_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, leave=8192)
        path = disk / "a.safetensors"
        places = "OUTPUT, --run or --tensorboard"
        state = disk / "a.run/state.safetensors"
        assert_facts(error_message(invoke("train", *QUICK, path)), f"No space left on device | {state} | {places}")
        assert [name for name in content(disk) if "safetensors" in name] == []


def test_train_on_a_read_only_disk_fails_before_training(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        make_read_only(disk)
        done = invoke("train", *QUICK, disk / "a.safetensors")
        places = "OUTPUT, --run or --tensorboard"
        assert_facts(error_message(done), f"Read-only file system | {disk / 'a.safetensors'} | {places}")
        assert "epoch" not in done.stderr


# Export


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("missing", "{path} | does not exist"),
        ("a folder", "{path} | folder | .safetensors"),
        ("text", "{path} | safetensors"),
        ("truncated", "{path} | safetensors"),
        ("without our metadata", "{path} | safetensors | no checkpoint | 'defensemble'"),
        ("with other masks", "{path} | damaged | digest"),
    ],
)
def test_export_refuses_a_damaged_or_missing_checkpoint(tmp_path: Path, kind: str, facts: str) -> None:
    path = broken_checkpoint(kind, tmp_path / "a.safetensors")
    before = content(tmp_path)
    assert_facts(error_message(invoke("export", path, "--repository", tmp_path / "repository")), facts.format(path=path))
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (
            ["alpha.safetensors"],
            "/alpha | already | --name NAME | --replace",
        ),
        (["new.safetensors"], "/ensemble | already | --ensemble | --replace"),
        (["alpha.safetensors", "--replace", "--ensemble", "beta"], "/beta | not an ensemble | --ensemble"),
        (["ensemble.safetensors", "--replace", "--ensemble", "other"], "/ensemble is an ensemble | member"),
        (["new.safetensors", "--ensemble", "new"], "'new' | same name"),
        (["new.safetensors", "--ensemble", "o", "--weight", "new=0"], "'new' | above 0 | 0.0"),
        (["new.safetensors", "--ensemble", "o", "--weight", "old=2"], "old | 'o' | new"),
        (["new.safetensors", "new.safetensors"], "new | twice"),
        (["average_1.safetensors"], "average_"),
    ],
)
def test_export_refuses_names_and_weights_before_it_reads_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], facts: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in arguments:
        if name.endswith(".safetensors"):
            Path(name).touch()
    repository = tiny.write_repository(tmp_path / "repository")
    before = content(tmp_path)
    assert_facts(error_message(invoke("export", *arguments, "--repository", repository)), facts)
    assert content(tmp_path) == before


def test_export_onto_a_full_or_read_only_disk_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    checkpoint = untrained_checkpoint(tmp_path / "new.safetensors")
    with small_disk(tmp_path / "disk") as disk:
        repository = tiny.write_repository(disk / "repository")
        fill(disk, leave=8192)
        before = content(disk)
        error = error_message(invoke("export", checkpoint, "--repository", repository, "--ensemble", "other"))
        assert_facts(error, f"No space left on device | {repository}/")
        assert_facts(error, "--repository")
        assert content(disk) == before
        make_read_only(disk)
        assert error_message(invoke("export", checkpoint, "--repository", repository, "--ensemble", "other")).startswith(
            "Read-only file system: "
        )
        assert content(disk) == before


@pytest.mark.slow
def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    names = ["a.safetensors", "b.safetensors", "c.safetensors"]
    for seed, name in enumerate(names):
        untrained_checkpoint(tmp_path / name, seed)
    (tmp_path / "temporary").mkdir()
    before = content(tmp_path)
    with start(
        "export", *names, "--repository", "repository", cwd=tmp_path, env=environment(TMPDIR=str(tmp_path / "temporary"))
    ) as process:
        assert process.stderr is not None
        try:
            assert_facts(process.stderr.readline(), "a.safetensors | fp32")
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(TIMEOUT_S) == 130
        finally:
            process.kill()
    assert "interrupted" in rest
    assert "Traceback" not in rest
    # torch's compiler makes an empty cache folder of its own on some runs.
    left = {name: held for name, held in content(tmp_path).items() if not name.startswith("temporary/torchinductor_")}
    assert left == before


# Calling and probing


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    batch = tiny.images(12)
    np.savez(tmp_path / "data.npz", images=batch, labels=tiny.logits(1, batch).argmax(axis=1))
    return tmp_path / "data.npz"


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_probe_reports_an_unreachable_server(npz: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    assert url in error_message(invoke("probe", "noise", url, "--dataset", npz, "--out", npz.parent / "noise.json"))
    assert list(npz.parent.iterdir()) == [npz]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_predict_stops_at_the_deadline(tmp_path: Path, scheme: str) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        error = error_message(invoke("predict", "--url", url, tmp_path / "x.npy", "--timeout", "0.3"))
        assert time.monotonic() - started < 10
    assert url in error
    # A silent listener is a slow server, not a missing one.
    assert "timed out" in error


def test_predict_reports_a_server_that_is_not_ready(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with scripted(sends(http(b'{"error":"loading"}', "503 Service Unavailable"))) as loading:
        error = error_message(invoke("predict", "--url", loading.url, tmp_path / "x.npy"))
    assert loading.url in error
    assert "loading" in error


def test_predict_reports_a_server_that_crashes_during_a_request(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with scripted(cut_off) as dying:
        error = error_message(invoke("predict", "--url", dying.url, tmp_path / "x.npy"))
    assert dying.url in error


def write_bad_images(folder: Path) -> None:
    arrays: dict[str, tiny.Array] = {
        "nan": np.full((2, *tiny.SHAPE), np.nan, np.float32),
        "range": np.full((2, *tiny.SHAPE), -0.5, np.float32),
        "type": np.ones((2, *tiny.SHAPE), np.int64),
        "shape": np.zeros((2, 3, 4, 4), np.float32),
        "empty": np.zeros((0, *tiny.SHAPE), np.float32),
        "good": tiny.images(9),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "text.npy").write_text("no array")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    (folder / "text.png").write_text("no picture")
    (folder / "data.csv").write_text("0,1")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["nan.npy"], "image 0 | nan.npy | 16"),
        (["range.npy"], "image 0 | range.npy | -0.5 to -0.5"),
        (["type.npy"], "type.npy | int64 | [0, 1] | uint8"),
        (["shape.npy"], "shape.npy | (2, 3, 4, 4) | (1, 4, 4)"),
        (["empty.npy"], "empty.npy | (0, 1, 4, 4)"),
        (["pickled.npy"], "pickled.npy | Python objects"),
        (["text.npy"], "text.npy | array"),
        (["cut.png"], "cut.png | decoded"),
        (["text.png"], "text.png | decoded"),
        (["data.csv"], "data.csv | image"),
    ],
)
def test_predict_refuses_images_that_do_not_fit_the_model(
    triton: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], facts: str
) -> None:
    write_bad_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    for url in (triton.grpc_url, triton.http_url):
        done = invoke("predict", "--url", url, *arguments)
        assert_facts(error_message(done), facts)
        assert done.stdout == ""


def test_probe_writes_its_result_completely_or_not_at_all(triton: Server, npz: Path) -> None:
    with small_disk(npz.parent / "disk") as disk:
        old = disk / "noise.json"
        old.write_text("{}\n")
        fill(disk, leave=0)
        before = content(disk)
        call = ("probe", "noise", triton.http_url, "--dataset", npz, "--sigmas", "8", "--out", old)
        assert_facts(error_message(invoke(*call)), f"No space left on device | {old} | --out")
        assert content(disk) == before
        make_read_only(disk)
        done = invoke(*call)
        assert_facts(error_message(done), f"Read-only file system | {old} | --out")
        assert done.stdout == "", "the file is checked before the first request"
        assert content(disk) == before
