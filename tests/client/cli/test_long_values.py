"""Error messages that quote long values are shortened in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from defensemble.cli import cli
from defensemble_repository.texts import shortened
from tests.support import tiny

LONG = "x" * 20_000


@given(st.text(alphabet="ab \n", max_size=300), st.integers(10, 80))
def test_lines_are_shortened_in_the_middle(text: str, longest: int) -> None:
    for short, line in zip(shortened(text, longest).split("\n"), text.split("\n"), strict=True):
        assert len(short) <= longest + 40
        assert short == line or len(line) > longest
        assert (short[: longest // 2], short[-(longest // 3) :]) == (line[: longest // 2], line[-(longest // 3) :])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_repository(tmp_path_factory.mktemp("long") / "repository")


def output_of(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code != 0
    return done.output


@pytest.mark.parametrize(
    "words",
    [
        ["ensemble", "create", LONG, "alpha"],
        ["ensemble", "add", "ensemble", f"alpha@{LONG}"],
        ["ensemble", "weight", "ensemble", f"alpha={LONG}"],
        ["ensemble", "rollback", LONG],
        ["ensemble", "history", LONG],
        ["predict", "--url", f"http://{LONG}", "--labelled", "."],
        ["export", "--weight", LONG, "a.safetensors"],
        ["import-onnx", "a.onnx", "--name", "a", "--mean", LONG],
        ["train", "--blocks", LONG, "a.safetensors"],
        ["train", "--dataset", LONG, "a.safetensors"],
        ["train", "--arch", LONG, "a.safetensors"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_long_argument_is_shortened(repository: Path, words: list[str]) -> None:
    where = ["--repository", str(repository)] if words[0] == "ensemble" else []
    files_only = ["--files-only"] if where and "history" not in words else []
    text = output_of(*words, *where, *files_only)
    assert "xxxx" in text
    assert len(text) < 4000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\rnonsense "),
        ('name: "alpha"', f'name: "{LONG}"'),
        ('name: "images"', f'name: "{LONG}"'),
        ("max_batch_size: 8", f"max_batch_size: {'9' * 20_000}"),
        ('backend: "onnxruntime"', f'platform: "{LONG}"'),
        ('backend: "onnxruntime"', f"{LONG}: 1"),
    ],
)
def test_a_long_configuration_is_shortened(repository: Path, old: str, new: str) -> None:
    path = repository / "alpha/config.pbtxt"
    good = path.read_text()
    path.write_text(good.replace(old, new), newline="")
    try:
        for words in (["check"], ["weight", "ensemble", "alpha=2", "--files-only"]):
            text = output_of("ensemble", *words, "--repository", repository)
            assert str(path) in text
            assert len(text) < 4000
    finally:
        path.write_text(good)
