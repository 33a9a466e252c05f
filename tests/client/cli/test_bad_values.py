"""Values that a shell or a typing error makes: empty paths, circular links, NaN, host names outside ASCII, misspelt repositories."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble._transport.address import address_from_url
from defensemble.cli import cli
from defensemble.cli.paths import missing_path_message
from defensemble.results.result_file import check_writable, write_result
from defensemble_repository.filesystem.atomic_write import write_atomic
from tests.support.facts import assert_facts


def refusal(line: str, exit_code: int = 2) -> str:
    done = CliRunner().invoke(cli, shlex.split(line))
    assert done.exit_code == exit_code, done.output
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEFENSEMBLE_REPOSITORY", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("train ''", "OUTPUT"),
        ("train a.safetensors --dataset ''", "--dataset"),
        ("train a.safetensors --run ''", "--run"),
        ("export ''", "CHECKPOINT"),
        ("export-report --repository ''", "--repository"),
        ("demo --folder ''", "--folder"),
        ("predict --url '' a.png", "--url"),
        ("predict --url http://127.0.0.1:1 ''", "FILE"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(folder: Path, line: str, option: str) -> None:
    assert_facts(refusal(line), f"{option} | is empty; expected")
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "line", ["train a.safetensors --dataset loop", "export loop", "serve --repository loop", "fuse f --repository loop"]
)
def test_a_circular_link_is_named(folder: Path, line: str) -> None:
    Path("loop").symlink_to("loop")
    assert_facts(refusal(line), "loop | link | back to")


def test_a_dangling_link_is_not_its_own_similar_name(folder: Path) -> None:
    Path("link").symlink_to("nowhere")
    message = missing_path_message(Path("link"))
    assert_facts(message, "link | nowhere | does not exist")
    assert "Did you mean" not in message


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("build-engine --workspace nan", "--workspace"),
        ("serve --start-timeout nan", "--start-timeout"),
        ("predict --url http://127.0.0.1:1 a.png --timeout nan", "--timeout"),
        ("ensemble show --timeout nan", "--timeout"),
        ("ensemble weight e a=1 --idle-timeout nan", "--idle-timeout"),
    ],
)
def test_nan_is_in_no_range(folder: Path, line: str, option: str) -> None:
    assert_facts(refusal(line), f"{option} | nan | range")


@pytest.mark.parametrize("number", ["inf", "1e300"])
def test_a_timeout_is_limited(folder: Path, number: str) -> None:
    Path("a.onnx").touch()
    assert_facts(refusal(f"import-onnx a.onnx --name a --timeout {number}"), "--timeout | range")
    assert_facts(refusal(f"ensemble weight e a=1 --load-timeout {number}"), "--load-timeout | range")


def test_a_host_name_outside_ascii_is_encoded_as_dns_needs_it() -> None:
    assert address_from_url("http://bücher.example:1").netloc == "xn--bcher-kva.example:1"


@pytest.mark.parametrize("line", ["ensemble list", "export-report", "profile list", "build-engine", "fuse f"])
def test_a_misspelt_repository_lists_similar_names(folder: Path, line: str) -> None:
    Path("models").mkdir()
    assert_facts(refusal(f"{line} --repository modles"), "--repository | modles does not exist | models")


def test_an_empty_ensemble_name_is_not_the_default(folder: Path) -> None:
    Path("a.onnx").touch()
    assert_facts(refusal("import-onnx a.onnx --name a --ensemble ''", 1), "'' is not a valid")


def test_an_empty_name_does_not_roll_back_the_last_edit(folder: Path) -> None:
    Path("model_repository").mkdir()
    assert_facts(refusal("ensemble rollback ''", 1), "'' is not a valid")
    assert_facts(refusal("fuse f --ensemble ''", 1), "'' is not a valid")


def test_a_report_is_of_a_model_by_name_not_by_path(folder: Path) -> None:
    Path("model_repository/a").mkdir(parents=True)
    assert_facts(refusal("export-report ../model_repository/a", 1), "no model ../model_repository/a | a")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full, a file that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "bash"]])
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(arguments: list[str], unbuffered: str) -> None:
    command, environment = [sys.executable, "-m", "defensemble", *arguments], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert_facts(done.stderr, "Error: No space left on device")
    assert "Traceback" not in done.stderr


def test_a_result_does_not_replace_a_fifo_or_a_link_to_an_open_file(folder: Path) -> None:
    """A rename would replace /dev/null or /dev/stdout for a user who may write in /dev."""
    os.mkfifo("fifo")
    Path("stdout").symlink_to("/proc/self/fd/1")
    for name, kind in (("fifo", "FIFO"), ("stdout", "link")):
        target = Path(name)
        before = target.lstat().st_ino
        for write in (check_writable, lambda path: write_result(path, {}), lambda path: write_atomic(path, b"")):
            with pytest.raises(OSError, match=kind):
                write(target)
        assert target.lstat().st_ino == before
    assert sorted(path.name for path in folder.iterdir()) == ["fifo", "stdout"]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="training needs torch")
def test_an_output_below_a_file_is_refused(folder: Path) -> None:
    Path("file").touch()
    assert_facts(refusal("train file/a.safetensors", 1), "file is a file | folder")
