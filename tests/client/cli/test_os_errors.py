"""Messages for errors of the operating system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from defensemble.cli import cli
from defensemble.cli.os_errors import text_from_os_error
from tests.support.facts import assert_facts
from tests.support.fakes import house
from tests.support.tiny import images


@pytest.mark.parametrize(
    ("number", "verb", "facts"),
    [
        (errno.ENOSPC, "probe", "(--out, --examples, --folder or --cache)"),
        (errno.EDQUOT, "train", "OUTPUT, --run or --tensorboard"),
        (
            errno.ENOSPC,
            "serve",
            "XDG_STATE_HOME | XDG_CACHE_HOME",
        ),
        (errno.ENOSPC, "doctor", "place"),
        (errno.EROFS, "export", "(--repository)"),
        (errno.EACCES, "demo", "chmod, chown | --folder"),
        (errno.ENOENT, "predict", "current folder"),
        (errno.EISDIR, "probe", "folder | file"),
        (errno.ENOTDIR, None, "file | folder"),
    ],
)
def test_an_os_error_has_a_fix(number: int, verb: str | None, facts: str) -> None:
    for names in ((), ("some/file",)):
        text = text_from_os_error(OSError(number, os.strerror(number), *names), verb)
        assert text.startswith(": ".join([os.strerror(number), *names]))
        assert_facts(text, facts)


def test_other_os_errors_keep_their_text() -> None:
    assert text_from_os_error(OSError("no number"), "probe") == "no number"
    assert text_from_os_error(OSError(errno.EIO, "Input/output error", "a"), "probe") == "Input/output error: a"
    assert text_from_os_error(OSError(errno.EXDEV, "Cross-device link", "a", None, "b"), "probe") == "Cross-device link: a: b"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["predict", "--url", "http://fake", "x.npy", "--contact-sheet", "folder.npy"], "Is a directory | folder.npy"),
        (
            ["probe", "noise", "http://fake", "--dataset", "data.npz", "--out", "folder.npy"],
            "Is a directory | folder.npy",
        ),
        (
            ["probe", "noise", "http://fake", "--dataset", "data.npz", "--out", "data.npz/x"],
            "Not a directory | data.npz/x",
        ),
    ],
)
def test_an_os_error_is_one_line_with_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], facts: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("defensemble._client.client.transport_from_url", lambda url, options: house())
    (tmp_path / "folder.npy").mkdir()
    np.save(tmp_path / "x.npy", images(2))
    np.savez(tmp_path / "data.npz", images=images(2), labels=np.zeros(2, int))
    done: Any = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert_facts(done.stderr, f"Error: {facts}")
    assert done.stdout == ""


def test_a_closed_pipe_is_no_error() -> None:
    # More than a pipe holds, so that writing fails.
    long = "lambda **_: [print('x' * 99) for _ in range(9999)]"
    script = f"from defensemble.cli import cli; cli.commands['doctor'].callback = {long}; cli()"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run([sys.executable, "-c", script, "doctor"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "facts"), [(">&-", "Bad file descriptor"), ("<&-", "standard input | empty"), ("<&- >&- 2>&-", "")]
)
def test_closed_streams_are_an_error(tmp_path: Path, redirection: str, facts: str) -> None:
    verb = "status http://127.0.0.1:1" if "<" not in redirection else "predict - --url http://127.0.0.1:1"
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m defensemble {verb} {redirection}"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert_facts(done.stderr.decode(), facts) if facts else None
