"""FIFOs, sockets and devices are rejected at once where a file is expected. Pipes that a user names are read."""

from __future__ import annotations

import errno
import os
import pty
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble_repository.filesystem import regular_files
from defensemble_repository.filesystem.regular_files import open_regular, read_regular, read_text, read_user_file, regular_file_exists
from defensemble_server.repository import read_repository
from tests.support import tiny


@contextmanager
def deadline(seconds: float = 20) -> Iterator[None]:
    """Fail if the block does not end in time."""

    def expired(number: int, frame: object) -> None:
        raise AssertionError("the call blocks")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def make(path: Path, kind: str) -> None:
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))  # The path of a socket has at most 107 characters.


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a socket"])
def test_special_files_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x"
    make(path, kind)
    for read in (open_regular, read_regular, read_text, regular_file_exists):
        with deadline(), pytest.raises(OSError, match=kind) as caught:
            read(path)
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(path))


def test_regular_files_are_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert not regular_file_exists(path)
    assert not regular_file_exists(tmp_path)
    path.write_bytes(b"12345\xff")
    assert regular_file_exists(path)
    assert read_regular(path) == read_regular(path, 6) == read_user_file(path, 6) == b"12345\xff"
    assert read_text(path) == "12345\N{REPLACEMENT CHARACTER}"
    for read in (read_regular, read_user_file):
        with pytest.raises(OSError, match="5 bytes") as caught:
            read(path, 5)
        assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        read_user_file(tmp_path / "none", 5)


@pytest.mark.parametrize("kind", ["a device", "a socket"])
def test_read_user_file_rejects_devices_and_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x", kind)
    with deadline(), pytest.raises(OSError, match=kind):
        read_user_file(tmp_path / "x", 5)


@contextmanager
def pipe() -> Iterator[tuple[str, int]]:
    """Yield the path of a pipe, as `<(COMMAND)` gives it, and the descriptor of its writing end."""
    reader, writer = os.pipe()
    try:
        yield f"/dev/fd/{reader}", writer
    finally:
        os.close(reader)


def end_with(writer: int, content: bytes) -> None:
    os.write(writer, content)
    os.close(writer)


def test_a_pipe_is_read_to_its_end() -> None:
    with deadline(), pipe() as (path, writer):
        os.write(writer, b"a" * 60_000)
        timer = threading.Timer(0.05, end_with, [writer, b"b"])
        timer.start()
        assert read_user_file(path, 60_001) == b"a" * 60_000 + b"b"
        timer.join()


def test_a_fifo_waits_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    os.mkfifo(path)
    timer = threading.Timer(0.05, path.write_bytes, [b"a"])
    timer.start()
    with deadline():
        assert read_user_file(path, 5) == b"a"
    timer.join()


def test_empty_silent_and_long_pipes_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_files, "_WRITER_WAIT_S", 0.05)
    monkeypatch.setattr(regular_files, "_SILENCE_S", 0.05)
    path = tmp_path / "x"
    os.mkfifo(path)
    with deadline(), pytest.raises(OSError, match="no writer") as caught:
        read_user_file(path, 5)
    assert caught.value.filename == str(path)
    with deadline(), pipe() as (end, writer):
        with pytest.raises(OSError, match=r"0\.05 s"):
            read_user_file(end, 5)
        os.write(writer, b"123456")
        with pytest.raises(OSError, match="5 bytes"):
            read_user_file(end, 5)
        os.close(writer)


def test_a_terminal_is_read_to_its_end() -> None:
    controller, terminal = pty.openpty()
    try:
        os.write(controller, b"abc\n\x04")
        with deadline():
            assert read_user_file(os.ttyname(terminal), 9) == b"abc\n"
    finally:
        os.close(controller)
        os.close(terminal)


@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
@pytest.mark.parametrize("file", ["alpha/config.pbtxt", "alpha/1/model.onnx", "alpha/labels.txt", "ensemble/config.pbtxt"])
def test_a_repository_with_special_files_is_neither_served_nor_edited(tmp_path: Path, file: str, kind: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    (folder / file).unlink(missing_ok=True)
    make(folder / file, kind)
    with deadline():
        problems = read_repository(folder).problems
        done = CliRunner().invoke(cli, ["ensemble", "weight", "ensemble", "beta=2", "--repository", str(folder), "--files-only"])
    assert str(folder / file) in problems[file.partition("/")[0]]
    assert done.exit_code == 1
    assert str(folder / file) in done.stderr


@pytest.mark.parametrize("file", ["history.jsonl", "pending-edit.json"])
def test_special_files_instead_of_records_of_edits_are_errors(tmp_path: Path, file: str) -> None:
    folder = tiny.write_repository(tmp_path / "r")
    os.mkfifo(folder / file)
    with deadline():
        done = CliRunner().invoke(cli, ["ensemble", "weight", "ensemble", "beta=2", "--repository", str(folder), "--files-only"])
    assert done.exit_code == 1
    assert file in done.stderr
