"""`defensemble export` into an existing repository: messages, and verification and files by the existing configurations."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from defensemble.cli.commands.export import command
from defensemble_export import ExportError, repository_plan as real_plan, verify_onnx as real_verify
from defensemble_export.verification.network import Verification
from defensemble_repository.ensemble import Ensemble, Member
from defensemble_repository.errors import RepositoryError
from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
from defensemble_repository.reader import read_ensemble
from tests.support import foreign_models as foreign
from tests.support.broken import content, untrained_checkpoint
from tests.support.facts import assert_facts


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def told_of_the_ensemble(result: Result) -> str:
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ensemble: ")]
    return line.removeprefix("ensemble: ")


def test_replace_extends_the_ensemble_and_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    a, b = (untrained_checkpoint(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    first = run(a, "--repository", repository, "--average", "logits", "--weight", "a=3", "--max-batch-size", "5")
    assert_facts(told_of_the_ensemble(first), "a@1 | weight 3 | logits | 5")

    path = repository / "a" / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "a")
    config.max_batch_size = 7
    path.write_bytes(pbtxt_from_config(config))
    stale = tmp_path / ".repository.staging-a1b2_c3d"
    (stale / "a").mkdir(parents=True)
    verified: list[int] = []
    held: list[bool] = []

    def verify(*arguments: Any, max_batch_size: int, **named: Any) -> Verification:
        verified.append(max_batch_size)
        return real_verify(*arguments, max_batch_size=max_batch_size, **named)

    def plan(*arguments: Any, **named: Any) -> dict[str, bytes]:
        descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(descriptor)
        return real_plan(*arguments, **named)

    monkeypatch.setattr("defensemble_export.members.write.verify_onnx", verify)
    monkeypatch.setattr("defensemble_export.export.repository_plan", plan)
    again = run(a, b, "--repository", repository, "--replace")
    assert_facts(told_of_the_ensemble(again), "a@2 | weight 3 | b@1 | weight 1 | logits | 5")
    assert read_ensemble(repository, "ensemble") == Ensemble("ensemble", (Member("a", 2, 3.0), Member("b")), "logits")
    assert verified == [7, 64], "each at the largest batch that its configuration allows"
    assert held == [True], "what is planned on this state is written onto it"
    assert f"{stale}" in again.stderr
    assert not stale.exists()

    before = content(tmp_path)
    refused = run(a, "--repository", repository, "--replace", "--max-batch-size", "64")
    assert type(refused.exception) is RepositoryError
    assert_facts(str(refused.exception), f"{repository / 'ensemble/config.pbtxt'} | max_batch_size 5 | --max-batch-size | 64")
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--no-ensemble", "--ensemble", "mine"], "--ensemble | --no-ensemble"),
        (["--no-ensemble", "--weight", "a=2"], "--weight | --average | --no-ensemble"),
        (["--no-ensemble", "--average", "logits"], "--weight | --average | --no-ensemble"),
        (["--weight", "a=2", "--weight", "a=3"], "a | name it once"),
        (["--weight", "a"], "NAME=W | 'a'"),
        (["b.safetensors", "--as", "c"], "--as | 2"),
        (["--from-onnx", "n.onnx"], "--from-onnx | --as NAME"),
        (["--output", "scores", "--labels", "l.txt"], "--output, --labels | --from-onnx"),
        (["--mean", "0.5"], "--mean | --from-onnx"),
        (["--resize", "crop"], "--resize | --from-onnx"),
        (["--resize", "stretch"], "'stretch' | 'crop', 'squash'"),
        (["--mean", "a,b"], "0.485,0.456,0.406 | 'a,b'"),
        (["--calibration-count", "9"], "--calibration-count | --precision int8"),
        (["--precision", "fp16", "--calibration-images", "a.npy"], "--calibration-images | --precision int8"),
        (["--precision", "fp8"], "'fp8' | 'fp32', 'fp16', 'int8'"),
    ],
)
def test_options_that_exclude_each_other_are_rejected(options: list[str], text: str) -> None:
    result = run("a.safetensors", *options)
    assert result.exit_code == 2
    assert_facts(" ".join(result.stderr.split()), text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "CHECKPOINT | --from-onnx"),
        (["--as", "a"], "--as | 0"),
        (["--from-onnx", "n.onnx", "--as", "a", "--mean", "0.5"], "--mean | --std"),
        (["--from-onnx", "n.onnx", "--as", "a", "--input-shape", "3,224"], "three | channels,height,width"),
        (["--fuse", "f", "--no-ensemble"], "--fuse | ensemble"),
        (["--fuse", "f", "--weight", "a=2", "--precision", "fp16"], "--weight, --precision"),
    ],
)
def test_options_without_a_network_are_rejected(options: list[str], text: str) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert_facts(" ".join(result.stderr.split()), text)


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
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", foreign.classifier().SerializeToString()])
def test_files_that_are_not_checkpoints_are_rejected_by_name(tmp_path: Path, name: str, facts: list[str], content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = run(path, "--repository", tmp_path / "repository", "--as", "a")
    assert isinstance(result.exception, ExportError)
    for text in facts:
        assert text.format(path=path) in str(result.exception)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("mean", "std", "facts"),
    [
        ("123.675,116.28,103.53", "58.395,57.12,57.375", "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"),
        ("127.5", "127.5", "--mean 0.5 --std 0.5"),
        ("0", "255", "--mean 0 --std 1"),
        ("0.485,0.456,0.406", "0.229,0.224,0.225", None),
    ],
)
def test_mean_and_std_in_0_to_255_cause_a_warning(tmp_path: Path, mean: str, std: str, facts: str | None) -> None:
    path = foreign.write(tmp_path, foreign.classifier())
    result = run("--from-onnx", path, "--as", "a", "--repository", tmp_path / "r", "--no-ensemble", "--mean", mean, "--std", std)
    assert result.exit_code == 0, result.output
    assert ("Warning" in result.stderr) == (facts is not None)
    assert (facts or "") in result.stderr
