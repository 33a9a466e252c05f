"""Mistakes in the use of `defensemble ensemble`: the error states the problem and the fix, and nothing changes."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from tests.support.broken import fill, make_read_only, small_disk
from tests.support.command_line import environment, error_message, run
from tests.support.facts import assert_facts
from tests.support.scripted import free_port
from tests.support.tiny import content
from tests.support.world import write_world


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("kept") / "repository")


@pytest.fixture
def place(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which holds the folder `repository`; no server runs on it."""
    shutil.copytree(kept, tmp_path / "here/repository")
    monkeypatch.chdir(tmp_path / "here")
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path / "here"
    signal.signal(signal.SIGTERM, handler)


def refused(words: list[str], status: int) -> str:
    """Return the error message of a verb that must fail: one message, no traceback."""
    done = CliRunner().invoke(cli, ["ensemble", *words])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == status, done.output
    parts = re.split(r"^Error: ", done.stderr, flags=re.MULTILINE)
    assert len(parts) == 2, done.output
    return parts[1].strip()


HERE = ["--repository", "repository"]
WEIGHT = "keep0.3=2"
NAME = "name | 100"
MEMBER = "MODEL@VERSION | keep0.3@2"
ABOVE_0 = "above 0"


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["weight", "ensemble", "a=0", *HERE], f"'a' | {ABOVE_0} | got 0 | `defensemble ensemble remove ensemble a`"),
        (["weight", "ensemble", "a=-1", *HERE], f"'a' | {ABOVE_0} | -1"),
        (["weight", "ensemble", "a=nan", *HERE], f"'a' | {ABOVE_0} | nan"),
        (["weight", "ensemble", "a=inf", *HERE], f"'a' | {ABOVE_0} | inf"),
        (["weight", "ensemble", "a=1e400", *HERE], f"'a' | {ABOVE_0} | inf"),
        (["weight", "ensemble", "a=1", "a@1=2", *HERE], "a@1 | two weights"),
        (["weight", "ensemble", "d=1", *HERE], "'d' | 'ensemble' | a@1, b@1, c@1"),
        (
            ["weight", "other", "d=1", *HERE],
            "repository | 'other' | ensemble",
        ),
        (["weight", "a", "d=1", *HERE], "'a' | repository | not an ensemble | ensemble"),
        (["weight", "../a", "d=1", *HERE], f"{NAME} | '../a'"),
        (["add", "ensemble", "d", "--weight", "0", *HERE], f"'d' | {ABOVE_0} | 0.0"),
        (["add", "ensemble", "x", *HERE], "repository | 'x' | a, b, c, d"),
        (["add", "ensemble", "../repository/d", *HERE], f"{NAME} | '../repository/d'"),
        (["add", "ensemble", "/d", *HERE], f"{NAME} | '/d'"),
        (["add", "ensemble", "d@2", *HERE], "'d' | version 2 | repository/d | 1"),
        (["add", "ensemble", "d@two", *HERE], f"{MEMBER} | 'd@two'"),
        (["add", "ensemble", "d", "--in-place-of", "x", *HERE], "'x' | 'ensemble' | a@1, b@1, c@1"),
        (
            ["remove", "ensemble", "a", "b", "c", *HERE],
            "'ensemble' | at least one",
        ),
        (["remove", "ensemble", "d", *HERE], "'d' | 'ensemble' | a@1, b@1, c@1"),
        (["delete", "other", *HERE], "repository | no ensemble 'other'"),
        (["delete", "a", *HERE], "'a' | repository | not an ensemble"),
        (["create", "average_mine", "a", *HERE], "average_"),
        (["create", "../mine", "a", *HERE], f"{NAME} | '../mine'"),
        (["create", "x" * 101, "a", *HERE], NAME),
        (["create", "ensemble", "a", *HERE], "repository/ensemble | already"),
        (["create", "mine", "a", "a", *HERE], "'mine' | a@1 | twice"),
        (["create", "mine", "a", "--weight", "b=2", *HERE], "b | members | a"),
        (["rollback", *HERE], "repository | no history"),
        (["rollback", "--count", "99", *HERE], "repository | no history"),
        (["show", "other", *HERE], "repository | no ensemble 'other'"),
        (["show", "other", "--format", "yaml", *HERE], "repository | no ensemble 'other'"),
        (["list", "--repository", "none"], "none | not exist | `defensemble export`"),
        (["weight", "ensemble", "a=1", "--repository", "none"], "none | not exist"),
        (["show", "--repository", "repository/a/config.pbtxt"], "repository/a/config.pbtxt | is a file"),
        (["show", "--url", "nonsense", *HERE], "'nonsense' | scheme | http://HOST:PORT"),
        (["show", "--url", "ftp://host", *HERE], "'ftp://host' | unknown scheme 'ftp' | http://HOST:PORT"),
        (["show", "--url", "grpc://a:1", "--url", "grpc://a:1", *HERE], "grpc://a:1 | twice"),
        (["reload", "other", *HERE], "repository | no ensemble 'other'"),
        (["apply", "repository", *HERE], "Is a directory | repository"),
    ],
)
def test_a_wrong_value_is_an_error(place: Path, words: list[str], facts: str) -> None:
    before = content(place)
    assert_facts(refused(words, 1), facts)
    assert content(place) == before


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["weight", "ensemble", "keep0.3=", *HERE], f"{WEIGHT} | 'keep0.3='"),
        (["weight", "ensemble", "a", *HERE], f"{WEIGHT} | 'a'"),
        (["weight", "ensemble", "=2", *HERE], f"{WEIGHT} | '=2'"),
        (["weight", "ensemble", "a=two", *HERE], f"{WEIGHT} | 'a=two'"),
        (["weight", "ensemble", "a=1", "a=2", *HERE], "a | two weights"),
        (["weight", "ensemble", *HERE], "Missing argument"),
        (["add", "ensemble", "d", "--weight", "two", *HERE], "'two' is not a valid float"),
        (["create", "mine", "a", "--weight", "a", *HERE], f"{WEIGHT} | 'a'"),
        (["average", "ensemble", "median", *HERE], "'median' is not one of 'probabilities', 'logits'"),
        (["remove", "ensemble", *HERE], "Missing argument"),
        (["apply", "none.yaml", *HERE], "none.yaml | not exist"),
        (["diff", "none.yaml", *HERE], "none.yaml | not exist"),
        (["rollback", "--count", "0", *HERE], "0 is not in the range x>=1"),
        (["rollback", "--count", "1", "--to", "0123456789ab", *HERE], "--count | --to ID"),
        (["list", "--url", "grpc://a:1", *HERE], "--url"),
        (["history", "--wait", "1", *HERE], "--wait"),
        (["check", "--wait", "1", *HERE], "--wait"),
        (["prune", "--keep-edits", "-1", *HERE], "-1 is not in the range x>=0"),
        (["history", "--last", "-1", *HERE], "-1 is not in the range x>=0"),
        (["show", "--replica", "grpc://a:1"], "URL=FOLDER | 'grpc://a:1'"),
        (["check"], "model_repository | not exist | Did you mean repository"),
        (["show", "--timeout", "0", *HERE], "0.0 is not in the range 0.1<=x<=1000000.0"),
        (["destroy", "ensemble", *HERE], "No such command 'destroy'"),
    ],
)
def test_a_wrong_use_is_a_usage_error(place: Path, words: list[str], facts: str) -> None:
    before = content(place)
    assert_facts(refused(words, 2), facts)
    assert content(place) == before


@pytest.mark.parametrize(
    ("written", "facts"),
    [
        (b"", "empty | name | members"),
        (b"name: ensemble\nmembers: [", ":2: | YAML"),
        (
            b"name: ensemble\nmembers:\n  - model: a\n    wieght: 2\n",
            ":4: | 'wieght' | weight",
        ),
        (b"name: ensemble\nmembers:\n  - model: a\n    weight: 0\n", f":4: | 'a' | {ABOVE_0} | 0.0"),
        (b"name: ../x\nmembers:\n  - model: a\n", f":1: | {NAME} | '../x'"),
        (b"name: ensemble\nmembers: []\n", ":2: | 'ensemble' | no members"),
        (b"name: ensemble\nmembers:\n  - model: nobody\n", "repository | nobody | a, b, c, d"),
        (b"name: ensemble\nmembers:\n  - model: a\n    version: 7\n", "model_version: 7 | 1"),
        (b"name: a\nmembers:\n  - model: b\n", "not an ensemble"),
        (b"name: caf\xe9\nmembers:\n  - model: a\n", ":1: | byte 9 | UTF-8"),
    ],
)
def test_a_wrong_declaration_is_an_error(place: Path, written: bytes, facts: str) -> None:
    (place / "file.yaml").write_bytes(written)
    before = content(place)
    for verb in ("apply", "diff"):
        assert_facts(refused([verb, "file.yaml", *HERE], 1), facts)
    assert content(place) == before


def test_a_server_that_does_not_answer_is_an_error(place: Path) -> None:
    before = content(place)
    for scheme in ("grpc", "http"):
        url = f"{scheme}://127.0.0.1:{free_port()}"
        error = refused(["weight", "ensemble", "a=2", "--url", url, "--timeout", "3", *HERE], 1)
        assert_facts(error, f"{url} | connection refused")
    assert url in refused(["weight", "ensemble", "a=2", "--replica", f"{url}=repository", "--timeout", "3"], 1)
    assert content(place) == before


def test_a_rollback_beyond_the_history_is_an_error(place: Path) -> None:
    assert CliRunner().invoke(cli, ["ensemble", "weight", "ensemble", "a=2", *HERE]).exit_code == 0
    before = content(place)
    assert_facts(refused(["rollback", "--to", "0123456789ab", *HERE], 1), "0123456789ab | 'ensemble' | `defensemble ensemble history`")
    assert_facts(refused(["rollback", "--count", "2", *HERE], 1), "'ensemble' | 1 edit | 2 | `defensemble ensemble history ensemble`")
    assert_facts(refused(["rollback", "other", *HERE], 1), "'other' | 0 edits | 1")
    assert content(place) == before


def test_paths_may_be_no_utf_8(place: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    shutil.copytree(place / "repository", place / odd)
    strict = environment(PYTHONIOENCODING="utf-8:strict")  # as with most locales
    done = run("ensemble", "weight", "ensemble", "a=2", "-m", odd, "--repository", odd, cwd=place, env=strict)
    assert done.returncode == 0, done.stderr
    assert f"rollback ensemble --repository '{odd}'" in done.stdout
    done = run("ensemble", "history", "--repository", odd, cwd=place, env=strict)
    assert (done.returncode, odd in done.stdout) == (0, True), done.stderr
    assert run("ensemble", "check", "--repository", odd, cwd=place).returncode == 0
    assert "does not exist" in error_message(run("ensemble", "show", "--repository", odd + "x", cwd=place))
    assert "does not exist" in error_message(run("ensemble", "apply", odd + ".yaml", "--repository", odd, cwd=place))
    error = error_message(run("ensemble", "create", odd, "a", "--repository", odd, cwd=place))
    assert_facts(error, NAME)


def test_a_full_disk_is_an_error_and_the_old_state_stays(place: Path) -> None:
    with small_disk(place / "disk") as disk:
        shutil.copytree(place / "repository", disk / "repository")
        fill(disk, 8192)
        before = content(disk / "repository")
        for words in (["add", "ensemble", "d"], ["create", "mine", "d"]):
            error = error_message(run("ensemble", *words, "--repository", disk / "repository", cwd=place))
            assert "No space left on device" in error
            assert content(disk / "repository") == before
        (disk / "filler").unlink()
        assert run("ensemble", "add", "ensemble", "d", "--repository", disk / "repository", cwd=place).returncode == 0
        assert run("ensemble", "check", "--repository", disk / "repository", cwd=place).returncode == 0


def test_a_read_only_disk_is_an_error_for_edits_only(place: Path) -> None:
    with small_disk(place / "disk") as disk:
        shutil.copytree(place / "repository", disk / "repository")
        assert run("ensemble", "average", "ensemble", "logits", "--repository", disk / "repository", cwd=place).returncode == 0
        (place / "file.yaml").write_text("name: ensemble\nmembers:\n  - model: a\n")
        make_read_only(disk)
        error = error_message(run("ensemble", "weight", "ensemble", "a=2", "--repository", disk / "repository", cwd=place))
        assert "Read-only file system" in error
        looks = [["show"], ["check"], ["history"], ["diff"], ["list"], ["show", "--format", "yaml"], ["diff", "file.yaml"]]
        looks += [[*words, "--dry-run"] for words in (["apply", "file.yaml"], ["rollback"], ["prune"], ["weight", "ensemble", "a=2"])]
        for words in looks:
            done = CliRunner().invoke(cli, ["ensemble", *words, "--repository", str(disk / "repository")])
            assert done.exit_code == 0, (words, done.output)


def test_a_server_that_started_during_an_edit_is_noted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = iter([[], [("http://127.0.0.1:1", "k" * 24)]])
    monkeypatch.setattr("defensemble.cli.actions.ensemble.find_local_servers", lambda repository, on_warning: next(servers))
    done = CliRunner().invoke(cli, ["ensemble", "weight", "ensemble", "a=2", *HERE])
    assert done.exit_code == 0
    assert_facts(done.stderr, "http://127.0.0.1:1 | started")
    assert next(servers, None) is None
