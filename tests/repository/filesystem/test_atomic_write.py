"""Atomic writes: permissions, failures and flushes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from defensemble_repository.filesystem import atomic_write
from defensemble_repository.filesystem.atomic_write import rename_durably, write_atomic


def test_a_private_file_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    fill = atomic_write.fill

    def recorded(file: object, content: bytes) -> None:
        modes.append([stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()])
        fill(file, content)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic_write, "fill", recorded)
    write_atomic(tmp_path / "key", b"secret", mode=0o600)
    assert modes == [[0o600]]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_bytes() == b"secret"
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_failed_folder_flush_names_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_atomic(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_several_renames_flush_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / f"new-{name}").touch()
    rename_durably([(tmp_path / f"new-{name}", tmp_path / name) for name in names])
    assert flushed == [*(str(tmp_path / f"new-{name}") for name in names), str(tmp_path)]
