"""What goes wrong in training, exporting, calling and probing: one clear error, a status that is not zero, nothing half-written."""

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
from tests.support.command_line import TIMEOUT_S, environment, start, told
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
    ("options", "expected"),
    [
        (["--keep", "1.5"], "keep must be in (0, 1], got 1.5; 1.0 is the standard network"),
        (["--keep", "0"], "keep must be in (0, 1], got 0.0"),
        (["--keep", "-0.3"], "keep must be in (0, 1], got -0.3"),
        (["--keep", "nan"], "keep must be in (0, 1], got nan"),
        (["--arch", "lenet"], "arch must be one of resnet18, resnet50, densenet121, senet18, vgg19, wrn32_4; got 'lenet'"),
        (["--data", "cifar11"], "unknown dataset 'cifar11'; there is digits"),
        (["--pattern", "stripes"], "pattern must be one of neuron, channel, shared; got 'stripes'"),
    ],
)
def test_train_refuses_what_no_network_can_have(tmp_path: Path, options: list[str], expected: str) -> None:
    assert told(invoke("train", *QUICK, *options, tmp_path / "a.safetensors")).startswith(expected)
    assert content(tmp_path) == {}


def test_train_on_a_full_disk_leaves_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk, leave=8192)
        path = disk / "a.safetensors"
        mend = "free some space there, or name another place (OUTPUT, --run or --tensorboard, whichever lies there)"
        state = disk / "a.run/state.safetensors"
        assert told(invoke("train", *QUICK, path)) == f"No space left on device: {state}: {mend}"
        assert [name for name in content(disk) if "safetensors" in name] == []


def test_train_on_a_read_only_disk_ends_before_it_trains(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        make_read_only(disk)
        done = invoke("train", *QUICK, disk / "a.safetensors")
        mend = "nothing can be written there: name another place (OUTPUT, --run or --tensorboard, whichever lies there)"
        assert told(done) == f"Read-only file system: {disk / 'a.safetensors'}: {mend}"
        assert "epoch" not in done.stderr


# Export


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("missing", "there is no checkpoint {path}; train one with: defensemble train {path}"),
        ("a folder", "{path} is a folder, expected a checkpoint (a .safetensors file)"),
        ("text", "{path} is no whole safetensors file ("),
        ("truncated", "{path} is no whole safetensors file ("),
        ("without our metadata", "{path} is a safetensors file, but no checkpoint of defensemble: its metadata lack the key 'defensemble'"),
        ("with other masks", "{path} is damaged or was changed: its weights and metadata have the digest "),
    ],
)
def test_export_refuses_a_file_that_is_no_whole_checkpoint(tmp_path: Path, kind: str, expected: str) -> None:
    path = broken_checkpoint(kind, tmp_path / "a.safetensors")
    before = content(tmp_path)
    assert told(invoke("export", path, "--repository", tmp_path / "repository")).startswith(expected.format(path=path))
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["alpha.safetensors"],
            "/alpha exists already: choose another name (--as NAME, or another file name), or pass --replace, which adds the",
        ),
        (["new.safetensors"], "/ensemble exists already: choose another --ensemble name, or pass --replace"),
        (["alpha.safetensors", "--replace", "--ensemble", "beta"], "/beta is not an ensemble: choose another --ensemble name"),
        (["ensemble.safetensors", "--replace", "--ensemble", "other"], "/ensemble is an ensemble, and cannot become a member"),
        (["new.safetensors", "--ensemble", "new"], "ensemble 'new' has a member of the same name: name one of them otherwise"),
        (["new.safetensors", "--ensemble", "o", "--weight", "new=0"], "weight of 'new' must be finite and above 0, got 0.0"),
        (["new.safetensors", "--ensemble", "o", "--weight", "old=2"], "a weight is given for old, which does not vote in 'o': new do"),
        (["new.safetensors", "new.safetensors"], "new: given twice; members are named after their files, so rename one"),
        (["average_1.safetensors"], "names that begin with average_ or uncertainty_ are kept for averaging models"),
    ],
)
def test_export_refuses_names_and_weights_before_it_reads_a_checkpoint(tmp_path: Path, arguments: list[str], expected: str) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    before = content(tmp_path)
    assert expected in told(invoke("export", *arguments, "--repository", repository))
    assert content(tmp_path) == before


def test_export_onto_a_full_or_read_only_disk_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    checkpoint = untrained_checkpoint(tmp_path / "new.safetensors")
    with small_disk(tmp_path / "disk") as disk:
        repository = tiny.write_repository(disk / "repository")
        fill(disk, leave=8192)
        before = content(disk)
        error = told(invoke("export", checkpoint, "--repository", repository, "--ensemble", "other"))
        assert error.startswith(f"No space left on device: {repository}/")
        assert error.endswith(": free some space there, or name another place (--repository)")
        assert content(disk) == before
        make_read_only(disk)
        assert told(invoke("export", checkpoint, "--repository", repository, "--ensemble", "other")).startswith("Read-only file system: ")
        assert content(disk) == before


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
            assert process.stderr.readline().startswith("exported and verified a.safetensors: fp32, ")
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
            assert process.wait(TIMEOUT_S) == 1
        finally:
            process.kill()
    assert "Aborted!" in rest
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
def test_probing_a_server_that_is_not_there(npz: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    assert told(invoke("probe", "noise", url, "--data", npz, "--out", npz.parent / "noise.json")).startswith(url)
    assert list(npz.parent.iterdir()) == [npz]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_does_not_answer_ends_at_the_deadline(tmp_path: Path, scheme: str) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        error = told(invoke("predict", url, tmp_path / "x.npy", "--timeout", "0.3"))
        assert time.monotonic() - began < 10
    assert error.startswith(url)
    # A silent listener is a slow server, not a missing one.
    assert ("no answer in time" if scheme == "http" else "DEADLINE_EXCEEDED") in error


def test_a_server_that_is_not_ready(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with scripted(sends(http(b'{"error":"loading"}', "503 Service Unavailable"))) as loading:
        error = told(invoke("predict", loading.url, tmp_path / "x.npy"))
    assert error.startswith(loading.url)
    assert "loading" in error


def test_a_server_that_dies_during_a_call(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", tiny.images(1))
    with scripted(cut_off) as dying:
        error = told(invoke("predict", dying.url, tmp_path / "x.npy"))
    assert error.startswith(dying.url)


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
    ("arguments", "expected"),
    [
        (["nan.npy"], "image 0 of nan.npy must be finite, got 16 values that are NaN or infinite"),
        (["range.npy"], "image 0 of range.npy must lie in [0, 1], got values from -0.5 to -0.5"),
        (["type.npy"], "type.npy holds int64, expected floats in [0, 1], uint8"),
        (["shape.npy"], "shape.npy has the shape (2, 3, 4, 4), expected images of the shape (1, 4, 4)"),
        (["empty.npy"], "empty.npy has the shape (0, 1, 4, 4)"),
        (["good.npy", "--batch-size", "9"], "takes at most 8 images a call, got 9: predict them 8 at a time"),
        (["pickled.npy"], "pickled.npy holds Python objects"),
        (["text.npy"], "text.npy is not an array of numbers"),
        (["cut.png"], "cut.png cannot be decoded: "),
        (["text.png"], "text.png cannot be decoded: "),
        (["data.csv"], "data.csv is neither an image ("),
    ],
)
def test_predict_refuses_images_that_the_model_cannot_take(
    triton: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    write_bad_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    for url in (triton.grpc_url, triton.http_url):
        done = invoke("predict", url, *arguments)
        assert expected in told(done)
        assert done.stdout == ""


def test_the_probe_s_result_is_written_whole_or_not_at_all(triton: Server, npz: Path) -> None:
    with small_disk(npz.parent / "disk") as disk:
        old = disk / "noise.json"
        old.write_text("{}\n")
        fill(disk, leave=0)
        before = content(disk)
        call = ("probe", "noise", triton.http_url, "--data", npz, "--sigmas", "8", "--out", old)
        assert told(invoke(*call)) == f"No space left on device: {old}: free some space there, or name another place (--out)"
        assert content(disk) == before
        make_read_only(disk)
        done = invoke(*call)
        assert told(done) == f"Read-only file system: {old}: nothing can be written there: name another place (--out)"
        assert done.stdout == "", "it was found out before the first query"
        assert content(disk) == before
