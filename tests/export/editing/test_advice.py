"""The commands that error messages advise work when they are run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_export import planned_files, write_files
from defensemble_repository.pbtxt import config_from_file, pbtxt_from_config
from tests.support import tiny

LARGE = (1, 8, 8)
DECLARATION = "name: ensemble\nmembers:\n- model: alpha\n  version: 1\n  weight: 1\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An ensemble of `alpha` and `beta`, and two members of another size, `large` and `other`, which are members of no ensemble."""
    folder = tiny.write_repository(tmp_path / "repository")
    large = [tiny.member(name, onnx=tiny.linear_onnx(3, LARGE), input_shape=LARGE) for name in ("large", "other")]
    write_files(folder, planned_files(folder, large, ensemble=None))
    return folder


def run(repository: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        cli, ["ensemble", *words, "--repository", str(repository), *([] if words[0] == "check" else ["--files-only"])]
    )
    return done.exit_code, done.output


def edit_parameter(repository: Path, key: str, value: str | None) -> None:
    (path,) = repository.glob("average_*/config.pbtxt")
    config = config_from_file(path)
    if value is None:
        config.parameters.pop(key)
    else:
        config.parameters[key].string_value = value
    path.write_bytes(pbtxt_from_config(config))


@pytest.mark.parametrize(
    ("edit", "advice"),
    [
        (["create", "ori", "alpha", "large"], "omit large"),
        (["create", "ori", "alpha", "large", "other"], "omit large, other"),
        (["add", "ensemble", "large"], "omit large"),
        (["add", "ensemble", "large", "other"], "omit large, other"),
    ],
)
def test_advises_to_leave_out_a_member_that_does_not_fit(repository: Path, edit: list[str], advice: str) -> None:
    status, text = run(repository, *edit)
    assert status == 1
    assert advice in text
    assert "ensemble remove" not in text
    if edit[0] == "create":
        assert run(repository, *edit[:3])[0] == 0


def spoil_sizes(repository: Path) -> None:
    for name in ("beta", "large"):
        config = config_from_file(repository / "beta/config.pbtxt")
        config.input[0].dims[:] = LARGE
        config.name = name
        (repository / name / "config.pbtxt").write_bytes(pbtxt_from_config(config))


def remove_average(repository: Path) -> None:
    (model,) = repository.glob("average_*")
    shutil.rmtree(model)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one size": spoil_sizes,
    "batch": lambda repository: tiny.edit_config(repository, "beta", max_batch_size=0),
    "missing member": lambda repository: shutil.rmtree(repository / "beta"),
    "weight 0": lambda repository: edit_parameter(repository, "weights", "[1.0, 0]"),
    "missing weights": lambda repository: edit_parameter(repository, "weights", None),
    "missing average": remove_average,
}


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("kind", list(DAMAGE))
def test_advised_commands_work(repository: Path, tmp_path: Path, kind: str, is_recorded: bool) -> None:
    if is_recorded:
        assert run(repository, "weight", "ensemble", "alpha=2")[0] == 0
        config = (repository / "ensemble/config.pbtxt").read_text()
        for unused in (path for path in repository.glob("average_*") if path.name not in config):
            shutil.rmtree(unused)
    DAMAGE[kind](repository)
    _, text = run(repository, "check", "ensemble")
    commands = re.findall(r"`defensemble ensemble ((?:remove|rollback|apply|reload)[^`]*)`", text)
    assert commands, text
    (tmp_path / "FILE").write_text(DECLARATION)
    for number, command in enumerate(dict.fromkeys(commands)):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(repository, copy)
        status, output = run(copy, *(str(tmp_path / word) if word == "FILE" else word for word in command.split()))
        assert status == 0, (command, output)
        status, output = run(copy, "check", "ensemble")
        assert status == 0, (command, output)


def test_impossible_edits_are_not_advised(repository: Path, tmp_path: Path) -> None:
    _, text = run(repository, "create", "alpha", "beta")
    assert "another name" in text
    assert "`" not in text
    _, text = run(repository, "rollback", "nowhere")
    assert "0 edits" in text
    assert "`" not in text
    run(repository, "remove", "ensemble", "beta")
    _, text = run(repository, "weight", "ensemble", "alpha=0")
    assert "`defensemble ensemble delete ensemble`" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    for words in (["create", "a", "b"], ["remove", "a", "b"]):
        assert "name one" not in run(empty, *words)[1]
