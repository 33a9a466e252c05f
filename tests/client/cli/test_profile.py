"""`defensemble profile` as it is typed: what it says, its exit status, and the options that do not go together."""

from __future__ import annotations

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
    done = run("list", repository)
    assert done.exit_code == 0, done.output
    rows = [re.split(r" {2,}", line) for line in done.stdout.splitlines()]
    assert len({len(row) for row in rows}) == 1, "every network has a cell for every profile"
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[1:]}


def test_written_listed_and_removed(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    before = tiny.content(tmp_path)
    missing = "version 1 has no model.plan"
    nothing = {"cpu": "not written", "gpu": "not written", "gpu-ort-tensorrt": "not written", "gpu-tensorrt": missing}
    assert table(repository) == {"alpha": nothing, "beta": nothing}
    done = run("write", "gpu", repository)
    assert done.exit_code == 0
    assert_facts(done.stdout, f"{repository} | alpha/configs/gpu.pbtxt, beta/configs/gpu.pbtxt")
    assert done.stdout.endswith(f"serve {repository} --profile gpu --runtime docker\n")
    assert table(repository)["beta"] == nothing | {"gpu": "written"}
    again = run("write", "gpu", repository)
    assert_facts(again.stdout, f"{repository} | 'gpu' | already")
    assert run("write", "cpu", repository).stdout.endswith(f"serve {repository} --profile cpu\n")
    assert_facts(run("remove", "cpu", repository).stdout, f"{repository} | alpha/configs/cpu.pbtxt, beta/configs/cpu.pbtxt")
    assert run("remove", "gpu", repository).exit_code == 0
    assert tiny.content(tmp_path) == before


def test_the_usual_repository_is_that_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_repository(tmp_path / "model_repository")
    assert run("write", "gpu-ort-tensorrt", "--cache-dir", "/engines", "--workspace", "2048").exit_code == 0
    text = (tmp_path / "model_repository/alpha/configs/gpu-ort-tensorrt.pbtxt").read_text()
    assert '"/engines/alpha-' in text
    assert f'"{2048 * 1024 * 1024}"' in text
    assert run("list").stdout.splitlines()[1].split()[0] == "alpha"
    assert run("remove", "gpu-ort-tensorrt").exit_code == 0


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["write", "tpu"], 2, "'tpu' is not one of 'cpu', 'gpu', 'gpu-ort-tensorrt', 'gpu-tensorrt'"),
        (["write", "gpu", "--cache-dir", "/x"], 2, "--cache-dir | --workspace | gpu-ort-tensorrt"),
        (["write", "gpu-ort-tensorrt", "--cache-dir", "x"], 1, "absolute"),
        (["write", "gpu-ort-tensorrt", "--workspace", "0"], 1, "1 to 1048576 MiB | 0"),
        (["write", "gpu-tensorrt"], 1, "`defensemble build-engine --repository model_repository`"),
        (["remove", "gpu"], 1, "model_repository | 'gpu' | none"),
    ],
)
def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_repository(tmp_path / "model_repository")
    before = tiny.content(tmp_path)
    done = run(*words)
    assert done.exit_code == status
    assert_facts(done.stderr, told)
    assert tiny.content(tmp_path) == before


def test_a_folder_that_cannot_be_read_as_a_repository(tmp_path: Path) -> None:
    done = run("list", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert_facts(done.stderr, f"Error: | {tmp_path / 'nowhere'} | `defensemble export`")


def test_engines_that_are_not_kept_are_told(tmp_path: Path) -> None:
    repository = tiny.write_repository(tmp_path / "repository")
    tiny.write_second_version(repository, "alpha", 7)
    done = run("write", "gpu-ort-tensorrt", repository)
    assert done.exit_code == 0
    assert_facts(done.stderr, "alpha | 2 versions | ONNX Runtime")
