"""`defensemble export` onto a repository that exists: what it says, and that it verifies and writes as the configurations there ask."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from defensemble.cli.export import command
from defensemble_export import Ensemble, ExportError, Vote, config_from_pbtxt, pbtxt_from_config, read_ensemble
from defensemble_export import repository_plan as real_plan
from defensemble_export import verify_onnx as real_verify
from tests.e2e.broken import content, untrained_checkpoint


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def told_of_the_ensemble(result: Result) -> str:
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("ensemble: ")]
    return line.removeprefix("ensemble: ")


def test_replace_extends_the_ensemble_and_tells_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    a, b = (untrained_checkpoint(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ab"))
    first = run(a, "--repository", repository, "--average", "logits", "--weight", "a=3", "--max-batch-size", "5")
    assert told_of_the_ensemble(first) == "a@1 (weight 3); average of logits, batches of up to 5"

    path = repository / "a" / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "a")
    config.max_batch_size = 7
    path.write_bytes(pbtxt_from_config(config))
    stale = tmp_path / ".repository.staging-a1b2_c3d"
    (stale / "a").mkdir(parents=True)
    verified: list[int] = []
    held: list[bool] = []

    def verify(*arguments: Any, max_batch_size: int) -> float:
        verified.append(max_batch_size)
        return real_verify(*arguments, max_batch_size=max_batch_size)

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

    monkeypatch.setattr("defensemble_export.member.verify_onnx", verify)
    monkeypatch.setattr("defensemble_export.exporting.repository_plan", plan)
    again = run(a, b, "--repository", repository, "--replace")
    assert told_of_the_ensemble(again) == "a@2 (weight 3), b@1 (weight 1); average of logits, batches of up to 5"
    assert read_ensemble(repository, "ensemble") == Ensemble("ensemble", (Vote("a", 2, 3.0), Vote("b")), "logits")
    assert verified == [7, 64], "each at the largest batch that its configuration allows"
    assert held == [True], "what is planned on this state is written onto it"
    assert f"removed {stale}, which an export that was killed had left" in again.stderr
    assert not stale.exists()

    before = content(tmp_path)
    refused = run(a, "--repository", repository, "--replace", "--max-batch-size", "64")
    assert type(refused.exception) is ExportError
    assert f"{repository / 'ensemble/config.pbtxt'} says max_batch_size 5, and --max-batch-size says 64" in str(refused.exception)
    assert content(tmp_path) == before


@pytest.mark.parametrize("option", [["--ensemble", "mine"], ["--weight", "a=2"], ["--average", "logits"], ["--average", "probabilities"]])
def test_options_of_an_ensemble_where_none_is_asked_for(option: list[str]) -> None:
    result = run("a.safetensors", "--no-ensemble", *option)
    assert result.exit_code == 2
    assert "--ensemble, --weight and --average are about an ensemble, and --no-ensemble asks for none" in result.stderr.replace("\n", " ")
