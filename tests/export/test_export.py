"""`defensemble export` and `import-onnx`: replacing members of an existing repository, and options that contradict each other."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from defensemble_export import planned_files as real_plan, verify_onnx as real_verify
from defensemble_export.verification.network import Verification
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_ensemble
from tests.support import foreign_models as theirs
from tests.support.broken import content, untrained_checkpoint
from tests.support.facts import assert_facts


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ensemble_line(result: Result) -> str:
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ensemble: ")]
    return line.removeprefix("ensemble: ")


def test_replace_extends_the_ensemble_and_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    a, b = (untrained_checkpoint(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    first = run("export", a, "--repository", repository, "--average", "logits", "--weight", "a=3", "--max-batch-size", "5")
    assert_facts(ensemble_line(first), "a@1 | weight 3 | logits | 5")

    path = repository / "a" / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "a")
    config.max_batch_size = 7
    path.write_bytes(pbtxt_from_config(config))
    stale = tmp_path / ".repository.staging-a1b2_c3d"
    (stale / "a").mkdir(parents=True)
    verified: list[int] = []
    locked: list[bool] = []

    def verify(*arguments: Any, max_batch_size: int, **named: Any) -> Verification:
        verified.append(max_batch_size)
        return real_verify(*arguments, max_batch_size=max_batch_size, **named)

    def plan(*arguments: Any, **named: Any) -> dict[str, bytes]:
        descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked.append(False)
        except BlockingIOError:
            locked.append(True)
        finally:
            os.close(descriptor)
        return real_plan(*arguments, **named)

    monkeypatch.setattr("defensemble_export.members.write.verify_onnx", verify)
    monkeypatch.setattr("defensemble_export.export.planned_files", plan)
    again = run("export", a, b, "--repository", repository, "--replace")
    assert_facts(ensemble_line(again), "a@2 | weight 3 | b@1 | weight 1 | logits | 5")
    assert read_ensemble(repository, "ensemble") == Ensemble("ensemble", (Member("a", 2, 3.0), Member("b")), "logits")
    assert verified == [7, 64], "each member is verified at the max_batch_size of its configuration"
    assert locked == [True], "the repository is locked from planning to writing"
    assert f"{stale}" in again.stderr
    assert not stale.exists()

    before = content(tmp_path)
    refused = run("export", a, "--repository", repository, "--replace", "--max-batch-size", "64")
    assert refused.exit_code == 1
    assert_facts(" ".join(refused.stderr.split()), f"{repository / 'ensemble/config.pbtxt'} | max_batch_size 5 | --max-batch-size | 64")
    assert content(tmp_path) == before


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of the names that the tests below use."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b.safetensors", "n.onnx", "a.npy"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


IMPORT = ("import-onnx", "n.onnx", "--name", "a")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["export"], "CHECKPOINT"),
        (["export", "a.safetensors", "--no-ensemble", "--ensemble", "mine"], "--ensemble | --no-ensemble"),
        (["export", "a.safetensors", "--no-ensemble", "--weight", "a=2"], "--weight | --average | --no-ensemble"),
        (["export", "a.safetensors", "--no-ensemble", "--average", "logits"], "--weight | --average | --no-ensemble"),
        (["export", "a.safetensors", "--weight", "a=2", "--weight", "a=3"], "a | two weights"),
        (["export", "a.safetensors", "--weight", "a"], "NAME=W | 'a'"),
        (["export", "a.safetensors", "b.safetensors", "--name", "c"], "--name | 2"),
        (["export", "a.safetensors", "--mean", "0.5"], "--mean"),
        (["export", "a.safetensors", "--calibration-count", "9"], "--calibration-count | --precision int8"),
        (
            ["export", "a.safetensors", "--precision", "fp16", "--calibration-images", "a.npy", "--calibration-seed", "0"],
            "--calibration-images, --calibration-seed | --precision int8",
        ),
        (["export", "a.safetensors", "--precision", "fp8"], "'fp8' | 'fp32', 'fp16', 'int8'"),
        (["export", "a.safetensor"], "a.safetensor | a.safetensors"),
        (["import-onnx", "n.onnx"], "--name"),
        ([*IMPORT, "--resize", "stretch"], "'stretch' | 'crop', 'squash'"),
        ([*IMPORT, "--mean", "a,b"], "0.485,0.456,0.406 | 'a,b'"),
        ([*IMPORT, "--mean", "0.5"], "--mean | --std"),
        ([*IMPORT, "--input-shape", "3,224"], "three | channels,height,width"),
        ([*IMPORT, "--no-ensemble", "--ensemble", "mine"], "--ensemble | --no-ensemble"),
        (["fuse"], "NAME"),
        (["fuse", "f", "--weight", "a=2", "--precision", "fp16"], "--weight | --precision | CHECKPOINT"),
        (["fuse", "f", "a.safetensors", "--ensemble", "mine"], "--ensemble | CHECKPOINT"),
    ],
)
def test_contradicting_options_are_a_usage_error(files: Path, words: list[str], facts: str) -> None:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert_facts(" ".join(result.stderr.split()), facts)


def test_a_dataset_must_be_the_one_that_the_checkpoint_was_trained_on(tmp_path: Path) -> None:
    path = untrained_checkpoint(tmp_path / "a.safetensors")
    commands: list[list[str | Path]] = [["export", path], ["fuse", "f", path]]
    for words in commands:
        result = run(*words, "--repository", tmp_path / "repository", "--dataset", "cifar10")
        assert result.exit_code == 1
        assert_facts(" ".join(result.stderr.split()), "a.safetensors | 'cifar10'")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("net.onnx", ["import-onnx {path} --name NAME"]),
        ("net.pt", ["PyTorch", "torch.onnx.export", "onnx_from_module", "import-onnx"]),
        ("net.pth", ["PyTorch"]),
        ("net.CKPT", ["PyTorch"]),
        ("pytorch_model.bin", ["PyTorch"]),
        ("net.keras", ["tf2onnx", "import-onnx"]),
    ],
)
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", theirs.classifier().SerializeToString()])
def test_export_rejects_files_whose_name_is_not_that_of_a_checkpoint(tmp_path: Path, name: str, facts: list[str], content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run("export", path, "--repository", tmp_path / "repository", "--name", "a")
    assert result.exit_code == 1
    for fact in facts:
        assert fact.format(path=path) in result.stderr
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("mean", "std", "advice"),
    [
        ("123.675,116.28,103.53", "58.395,57.12,57.375", "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        ("127.5", "127.5", "--mean 0.5 --std 0.5"),
        ("0", "255", "--mean 0 --std 1"),
        ("0.485,0.456,0.406", "0.229,0.224,0.225", None),
    ],
)
def test_a_mean_or_std_above_1_is_noted(tmp_path: Path, mean: str, std: str, advice: str | None) -> None:
    path = theirs.write(tmp_path, theirs.classifier())
    options = ("--repository", tmp_path / "r", "--no-ensemble", "--mean", mean, "--std", std)
    result = run("import-onnx", path, "--name", "a", *options)
    assert result.exit_code == 0, result.output
    assert ("note: --mean" in result.stderr) == (advice is not None)
    assert (advice or "") in result.stderr
