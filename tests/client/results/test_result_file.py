from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from defensemble import ServerMetadata, __version__
from defensemble.results.provenance import git_commit, provenance
from defensemble.results.result_file import check_writable, write_result


def test_a_result_is_written_completely(tmp_path: Path) -> None:
    target = tmp_path / "new" / "result.json"
    write_result(target, {"a": 1})
    write_result(target, {"a": None})
    assert json.loads(target.read_text()) == {"a": None}
    assert os.listdir(target.parent) == ["result.json"]
    assert not stat.S_IMODE(target.stat().st_mode) & 0o111


@pytest.mark.parametrize("bad", [{"a": float("nan")}, {"a": np.zeros(2)}])
def test_values_that_are_not_json_change_nothing(tmp_path: Path, bad: dict[str, object]) -> None:
    target = tmp_path / "result.json"
    write_result(target, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        write_result(target, bad)
    assert json.loads(target.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_earlier_result_keeps_its_name_until_the_new_one_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.json"
    write_result(target, {"a": 1})

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left") as caught:
            write_result(target, {"a": 2}, keep_earlier=True)
    assert caught.value.filename == str(target)
    assert os.listdir(tmp_path) == ["result.json"]
    assert json.loads(target.read_text()) == {"a": 1}
    assert write_result(target, {"a": 2}, keep_earlier=True) == tmp_path / "result.1.json"
    assert [json.loads((tmp_path / name).read_text()) for name in ("result.json", "result.1.json")] == [{"a": 2}, {"a": 1}]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "result.json", tmp_path / "file/new/result.json"):
        for write in (check_writable, lambda path: write_result(path, {"a": 1})):
            with pytest.raises((IsADirectoryError, NotADirectoryError)) as caught:
                write(path)
            assert caught.value.filename == str(path), "the user's path, and not that of a temporary file"
    assert sorted(os.listdir(tmp_path)) == ["file", "result.json"]


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    for name in ("old.json", "new.json", "new/folder/new.json"):
        check_writable(tmp_path / name)
    assert os.listdir(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"


def test_provenance_has_machine_versions_and_server() -> None:
    output = provenance(ServerMetadata("triton", "2.51.0"))
    assert output["hardware"]["cores"] == len(os.sched_getaffinity(0))
    assert output["hardware"]["memory_bytes"] > 1 << 28
    assert output["versions"]["numpy"] == np.__version__
    assert output["versions"]["defensemble"] == __version__
    assert output["server"] == {"name": "triton", "version": "2.51.0"}
    assert json.loads(json.dumps(output)) == output
    assert provenance()["server"] is None


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text("a")
    git("init", "-q")
    assert git_commit(tmp_path) is None
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path) == commit
    (tmp_path / "pyproject.toml").write_text("b")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    assert git_commit(tmp_path / "sub") is None
