"""Transactions write all files or none: every call that changes the disk fails once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defensemble_export import write_files
from defensemble_repository import transaction
from defensemble_repository.lock import locked
from defensemble_repository.transaction import remove_files

CALLS = ((os, "rename"), (os, "replace"), (os, "link"), (os, "fsync"), (transaction, "fill"), (Path, "mkdir"))
FIRST = {"a/1/model.onnx": b"one", "a/config.pbtxt": b"old", "e/config.pbtxt": b"ensemble"}
SECOND = {"a/2/model.onnx": b"two", "a/config.pbtxt": b"new", "b/1/model.onnx": b"b", "b/config.pbtxt": b"b", "e/config.pbtxt": b"changed"}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_write_files_creates_and_replaces(tmp_path: Path) -> None:
    repository = tmp_path / "deep" / "repository"
    write_files(repository, FIRST)
    write_files(repository, SECOND)
    assert content(repository) == {**FIRST, **SECOND}
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


class DiskFaults:
    """Makes the n-th call of the functions that change a disk fail, as on a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int) -> None:
        self.calls = 0
        self.fail_at = fail_at
        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(28, "No space left on device")
            return function(*arguments, **options)

        return counted


def test_a_full_disk_at_any_call_restores_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    write_files(old, FIRST)
    with monkeypatch.context() as patch:
        faults = DiskFaults(patch, 0)
        counted = tmp_path / "counted"
        shutil.copytree(old, counted)
        faults.calls = 0
        write_files(counted, SECOND)
        calls = faults.calls
    assert calls >= 15
    for fail_at in range(1, calls + 1):
        repository = tmp_path / f"at{fail_at}" / "repository"
        shutil.copytree(old, repository)
        with monkeypatch.context() as patch:
            DiskFaults(patch, fail_at)
            with pytest.raises(OSError, match="No space left"):
                write_files(repository, SECOND)
        assert content(repository) == FIRST, f"call {fail_at}"
        assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_remove_files_removes_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    write_files(old, FIRST | {"a/configs/x.pbtxt": b"x", "b/configs/x.pbtxt": b"x", "b/configs/y.pbtxt": b"y"})
    paths = ["a/configs/x.pbtxt", "b/configs/x.pbtxt"]
    for fail_at in range(1, 20):
        repository = tmp_path / f"at{fail_at}" / "repository"
        shutil.copytree(old, repository)
        with monkeypatch.context() as patch:
            faults = DiskFaults(patch, fail_at)
            try:
                remove_files(repository, paths)
            except OSError:
                failed = True
            else:
                failed = False
        assert [path.name for path in repository.parent.iterdir()] == ["repository"]
        if not failed:
            break
        assert content(repository) == content(old), f"call {fail_at}"
    assert fail_at > 4, "two renames, and two folders for them"
    assert faults.calls == fail_at - 1
    assert content(repository) == {**FIRST, "b/configs/y.pbtxt": b"y"}
    assert not (repository / "a/configs").exists(), "an empty folder is removed too"
    with pytest.raises(FileNotFoundError):
        remove_files(repository, ["b/configs/y.pbtxt", "b/configs/x.pbtxt"])
    assert content(repository) == {**FIRST, "b/configs/y.pbtxt": b"y"}


def test_a_failed_write_of_a_new_repository_leaves_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept").mkdir()
    for fail_at in range(1, 14):
        with monkeypatch.context() as patch:
            faults = DiskFaults(patch, fail_at)
            with pytest.raises(OSError, match="No space left"):
                write_files(tmp_path / "kept" / "deep" / "er" / "new", FIRST)
        assert [path.name for path in tmp_path.rglob("*")] == ["kept"], f"call {fail_at}"
    assert faults.calls > 13, "calls that restore files are counted too"


def test_a_parent_folder_with_new_files_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        (tmp_path / "deep" / "other").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        write_files(tmp_path / "deep" / "er" / "new", FIRST)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "other"]


def test_locked_is_exclusive(tmp_path: Path) -> None:
    def is_held() -> bool:
        descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    for repository in (tmp_path / "repository", tmp_path / "deep" / "er"):
        with locked(repository):
            assert is_held()
        assert not is_held()


@pytest.mark.skipif(not Path("/proc/self/ns").exists() or os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_and_a_read_only_file_system(tmp_path: Path) -> None:
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mount is not allowed here")
    try:
        write_files(small / "repository", FIRST)
        with pytest.raises(OSError, match="No space left"):
            write_files(small / "repository", {"big/1/model.onnx": bytes(200_000), "big/config.pbtxt": b"x"})
        assert content(small / "repository") == FIRST
        assert [path.name for path in small.iterdir()] == ["repository"]
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(OSError, match="Read-only file system"):
            write_files(small / "repository", {"c/config.pbtxt": b"x"})
        assert content(small / "repository") == FIRST
    finally:
        subprocess.run(["umount", str(small)], check=True)
