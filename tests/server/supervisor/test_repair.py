"""The process of a repair reports why it failed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from defensemble_server.supervisor.repair import RepairProcess


def ended(process: RepairProcess) -> str | None:
    deadline = time.monotonic() + 60
    while process.error() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.error()


@pytest.mark.parametrize(
    ("lines", "reported"),
    [
        ("note: a remark\nError: it failed: full\n- /repository has the old state\n", "Error: it failed: full"),
        ("Traceback (most recent call last):\nModuleNotFoundError: no module\n", "ModuleNotFoundError: no module"),
        ("", "no message"),
    ],
)
def test_the_error_is_reported_and_not_what_follows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, reported: str) -> None:
    code = f"import sys; sys.stderr.write({lines!r}); sys.exit(3)"
    monkeypatch.setattr("defensemble_server.supervisor.repair._CODE", code)
    process = RepairProcess(tmp_path)
    error = ended(process)
    assert error is not None
    assert error.endswith(f"status 3: {reported}")
    assert not process.was_killed
    process.stop()
