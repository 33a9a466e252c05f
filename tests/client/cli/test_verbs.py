"""What all verbs have: `--verbose`, `--quiet`, `--log-level`, examples, uppercase metavars; and shell completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble.cli.choices import SHELLS
from defensemble.cli.datasets import DatasetLocation, DatasetType
from defensemble.cli.paths import missing_path_message
from tests.support.command_line import environment
from tests.support.facts import assert_facts


def leaf_commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaf_commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


VERBS = dict(leaf_commands(cli))


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_each_verb_has_verbosity_options_and_examples(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*words, "--help"], terminal_width=200)
    assert done.exit_code == 0, done.output
    assert_facts(done.output, "-v, --verbose | -q, --quiet | --log-level LEVEL | --help | Examples:")
    examples = [line.strip() for line in done.output.split("Examples:")[1].split("\n\n")[0].splitlines() if line.strip()]
    assert 1 <= len(examples) <= 4
    assert all("defensemble " + " ".join(words) in line for line in examples)
    short_help = VERBS[words].get_short_help_str(200)
    assert re.fullmatch(r"[A-Z][^.]*[^.]\.", short_help), short_help


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_each_option_with_a_value_has_an_uppercase_metavar_or_choices(words: tuple[str, ...]) -> None:
    command = VERBS[words]
    context = click.Context(command)
    for option in command.params:
        if isinstance(option, click.Option) and not (option.is_flag or option.count):
            metavar = option.make_metavar(context)
            assert metavar.startswith("[") or metavar.split("|")[0].isupper(), (words, option.opts, metavar)
            assert metavar not in ("TEXT", "INTEGER", "FLOAT", "PATH", "INTEGER RANGE", "FLOAT RANGE"), (words, option.opts, metavar)


def test_verbosity_options_exclude_each_other() -> None:
    done = CliRunner().invoke(cli, ["doctor", "-v", "-q"])
    assert done.exit_code == 2
    assert_facts(done.stderr, "--verbose | --quiet | --log-level")


def test_a_wrong_choice_is_refused_before_heavy_imports(tmp_path: Path) -> None:
    script = """
import sys
from defensemble.cli import main
sys.argv = ["defensemble", "train", "--arch", "foo", "a.safetensors"]
try:
    main()
finally:
    print(sorted({"torch", "numpy", "onnx", "tritonclient", "rich"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert_facts(done.stderr, "'foo' | 'resnet18'")
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("digits", DatasetLocation("digits")),
        ("cifar10=photos", DatasetLocation("cifar10", Path("photos"))),
        ("folder=photos", DatasetLocation("folder", Path("photos"))),
        ("photos", DatasetLocation(folder=Path("photos"))),
        ("./digits", DatasetLocation(folder=Path("digits"))),
        ("a.npz", DatasetLocation(archive=Path("a.npz"))),
        ("B.NPZ", DatasetLocation(archive=Path("B.NPZ"))),
    ],
)
def test_a_dataset_is_a_name_a_folder_both_or_an_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, location: DatasetLocation
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "digits"):
        Path(folder).mkdir()
    Path("a.npz").touch()
    assert DatasetType(archives=True).convert(text, None, None) == location


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("cifar11", "'cifar11' | digits | cifar10"),
        ("cifar10=photo", "photo | does not exist | photos"),
        ("cifar10=", "'cifar10=' | cifar10=FOLDER"),
        ("cifar11=photos", "'cifar11' | cifar10"),
        ("some/where", "some/where | does not exist"),
        ("file", "file | expected a folder"),
        ("b.npz", "b.npz | does not exist | a.npz"),
    ],
)
def test_a_wrong_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, facts: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("file").touch()
    Path("a.npz").touch()
    done = CliRunner().invoke(cli, ["probe", "noise", "http://127.0.0.1:1", "--dataset", text])
    assert done.exit_code == 2
    assert_facts(done.stderr, f"--dataset | {facts}")


def test_a_missing_path_lists_similar_names(tmp_path: Path) -> None:
    for name in ("keep0.3.safetensors", "keep0.5.safetensors", "other.txt"):
        (tmp_path / name).touch()
    assert_facts(missing_path_message(tmp_path / "Keep0.4.safetensors"), "keep0.3.safetensors | keep0.5.safetensors")
    assert_facts(missing_path_message(tmp_path / "x/y.png"), f"{tmp_path / 'x/y.png'} | does not exist | {tmp_path / 'x'}")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_prints_a_script_for_each_shell(shell: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert f"_DEFENSEMBLE_COMPLETE={shell}_complete" in done.output
    if shutil.which(shell) is not None:
        script = tmp_path / "completion"
        script.write_text(done.output)
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "completions"),
    [("tr", {"train"}), ("train --arch res", {"resnet18", "resnet50"}), ("serve --runt", {"--runtime"}), ("ensemble cre", {"create"})],
)
def test_completion_completes_verbs_options_and_choices(words: str, completions: set[str], tmp_path: Path) -> None:
    env = environment(_DEFENSEMBLE_COMPLETE="bash_complete", COMP_WORDS=f"defensemble {words}", COMP_CWORD=str(len(words.split())))
    done = subprocess.run([sys.executable, "-m", "defensemble"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == completions


def test_the_repository_is_read_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    env = {**os.environ, "DEFENSEMBLE_REPOSITORY": str(tmp_path / "models")}
    done = CliRunner().invoke(cli, ["ensemble", "list"], env=env)
    assert done.exit_code == 0, done.output
    assert "model_repository" not in done.output
