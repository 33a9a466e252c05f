"""Commands that texts mention in passing, in messages, docstrings and documents, have verbs and options that exist."""

from __future__ import annotations

import re
import subprocess

import click

from defensemble.cli import cli
from tests.support.checkout import ROOT

_MENTIONED = re.compile(r"`defensemble ([^`]+)`")


def unknown_words(text: str) -> list[str]:
    """Return the verbs and options of a command that do not exist."""
    command: click.Command = cli
    words = text.split()
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
        word = words.pop(0)
        if word not in command.commands:
            return [word]
        command = command.commands[word]
    if isinstance(command, click.Group) and words[:1] == ["..."]:  # any verb of the group
        return []
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help",
        "-h",
        "--version",
    }
    return [word for word in words if re.fullmatch(r"--[a-z-]+|-[a-z]", word) and word not in options]


def test_every_command_that_is_mentioned_exists() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [file for file in listed.splitlines() if not file.startswith("tests/") and file != "CHANGELOG.md"]
    found = {file: _MENTIONED.findall((ROOT / file).read_text()) for file in files}
    assert sum(map(len, found.values())) > 100
    assert {(file, text): unknown_words(text) for file, texts in found.items() for text in texts if unknown_words(text)} == {}


def test_a_verb_and_an_option_that_do_not_exist_are_found() -> None:
    assert unknown_words("ensemble reload --all") == ["--all"]
    assert unknown_words("ensembles") == ["ensembles"]
    assert unknown_words("train --keep 0.3 -q a.safetensors") == []
