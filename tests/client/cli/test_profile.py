"""`defensemble profile`: its output, its exit status, and options that contradict each other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from defensemble.cli import cli
from tests.support import tiny
from tests.support.facts import assert_facts


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, ["profile", *map(str, words)])


def table(repository: Path) -> dict[str, dict[str, str]]:
    done = run("list", "--repository", repository)
    assert done.exit_code == 0, done.output
    rows = [re.split(r" {2,}", line) for line in done.stdout.splitlines()]
    assert len({len(row) for row in rows}) == 1, "every network has a cell for every profile"
    states = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}
    output = json.loads(run("list", "--repository", repository, "--json").stdout)
    assert {(row["model"], row["profile"], row["state"]) for row in output} == {
        (model, profile, state) for model, row in states.items() for profile, state in row.items()
    }
    return states


def test_a_profile_is_written_listed_and_removed(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    here = ("--repository", repository)
    before = tiny.content(tmp_path)
    missing = "version 1 has no model.plan"
    not_written = {"cpu": "not written", "gpu": "not written", "gpu-ort-tensorrt": "not written", "gpu-tensorrt": missing}
    assert table(repository) == {"alpha": not_written, "beta": not_written}
    done = run("write", "gpu", *here)
    assert done.exit_code == 0
    assert_facts(done.stdout, f"{repository} | alpha/configs/gpu.pbtxt, beta/configs/gpu.pbtxt")
    assert done.stdout.endswith(f"serve --repository {repository} --profile gpu --runtime docker\n")
    assert table(repository)["beta"] == not_written | {"gpu": "written"}
    again = run("write", "gpu", *here)
    assert_facts(again.stdout, f"{repository} | 'gpu' | up to date")
    assert run("write", "cpu", *here).stdout.endswith(f"serve --repository {repository} --profile cpu\n")
    assert_facts(run("remove", "cpu", *here).stdout, f"{repository} | alpha/configs/cpu.pbtxt, beta/configs/cpu.pbtxt")
    assert run("remove", "gpu", *here).exit_code == 0
    assert tiny.content(tmp_path) == before


def test_the_repository_comes_from_the_environment_or_is_model_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_repository(tmp_path / "model_repository")
    assert run("write", "gpu-ort-tensorrt", "--cache-dir", "/engines", "--workspace", "2048").exit_code == 0
    text = (tmp_path / "model_repository/alpha/configs/gpu-ort-tensorrt.pbtxt").read_text()
    assert '"/engines/alpha-' in text
    assert f'"{2048 * 1024 * 1024}"' in text
    assert run("list").stdout.splitlines()[1].split()[0] == "alpha"
    assert run("remove", "gpu-ort-tensorrt").exit_code == 0
    monkeypatch.setenv("DEFENSEMBLE_REPOSITORY", str(tmp_path / "other"))
    assert_facts(run("list").stderr, f"{tmp_path / 'other'}")


@pytest.mark.parametrize(
    ("words", "status", "facts"),
    [
        (["write", "tpu"], 2, "'tpu' is not one of 'cpu', 'gpu', 'gpu-ort-tensorrt', 'gpu-tensorrt'"),
        (["write", "gpu", "--cache-dir", "/x"], 2, "--cache-dir | --workspace | gpu-ort-tensorrt"),
        (["write", "gpu-ort-tensorrt", "--cache-dir", "x"], 1, "absolute"),
        (["write", "gpu-ort-tensorrt", "--workspace", "0"], 1, "1 to 1048576 MiB | 0"),
        (["write", "gpu-tensorrt"], 1, "`defensemble build-engine --repository model_repository`"),
        (["remove", "gpu"], 1, "model_repository | 'gpu' | none"),
    ],
)
def test_a_refused_command_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, facts: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_repository(tmp_path / "model_repository")
    before = tiny.content(tmp_path)
    done = run(*words)
    assert done.exit_code == status
    assert_facts(done.stderr, facts)
    assert tiny.content(tmp_path) == before


def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    done = run("list", "--repository", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert_facts(done.stderr, f"Error: | {tmp_path / 'nowhere'} | `defensemble export`")


def test_engines_that_cannot_be_cached_are_noted(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    tiny.write_second_version(repository, "alpha", 7)
    done = run("write", "gpu-ort-tensorrt", "--repository", repository)
    assert done.exit_code == 0
    assert_facts(done.stderr, "alpha | 2 versions | ONNX Runtime")
