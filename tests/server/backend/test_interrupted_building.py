"""A build that is interrupted, killed or takes too long: no compiler runs on, and nothing is left but what the next build removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from defensemble_server import BackendBuildError
from defensemble_server.runtime.backend_build import Compiler, ensure_backend
from tests.server.backend.test_building import COMPILES, script

# Stands for g++ and the cc1plus that it starts: it writes a temporary file, and its child would run for long.
SLOW = """
[ "$1" = --version ] && { echo "slow 1.0"; exit 0; }
echo half > "${TMPDIR:-/tmp}/cc-$$.s"
sh -c 'echo $$ > "$0.child"; exec sleep 60' "$0"
exit 4
"""
BUILD = """
import sys
from pathlib import Path
from defensemble_server.runtime.backend_build import ensure_backend
ensure_backend(cache_dir=Path(sys.argv[1]), compiler=sys.argv[2:], on_progress=lambda text: None)
"""


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def interrupted_build(cache: Path, command: list[str], started: Callable[[], bool], number: signal.Signals, temporary: Path) -> int:
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", BUILD, str(cache), *command], env=env, stderr=subprocess.DEVNULL) as building:
        try:
            assert within(60, started)
            building.send_signal(number)
            return building.wait(30)
        finally:
            building.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_compiler_and_its_children_end_with_the_build(tmp_path: Path, number: signal.Signals) -> None:
    compiler = script(tmp_path, "compiler", SLOW)
    child = tmp_path / "compiler.child"
    cache, temporary = tmp_path / "cache", tmp_path / "temporary"
    interrupted_build(cache, [compiler], lambda: child.exists() and child.read_text() != "", number, temporary)
    assert within(5, lambda: not runs(int(child.read_text())))
    assert list(temporary.iterdir()) == []
    left = list(cache.iterdir())
    assert [path.name[:10] for path in left] == ([] if number == signal.SIGINT else [".building-"])
    built = ensure_backend(cache_dir=cache, compiler=[script(tmp_path, "quick", COMPILES)], on_progress=lambda text: None)
    assert list(cache.iterdir()) == [built], "the next build removes what a killed one left"


def test_the_real_compiler_ends_with_a_killed_build(tmp_path: Path, compiler: Compiler) -> None:
    cache = tmp_path / "cache"

    def compilers() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except (FileNotFoundError, ProcessLookupError):
                continue
        # The build itself names its cache too.
        return [command for command in found if f"{cache}/.building-" in command]

    def compiles() -> bool:
        return bool(compilers()) and any(cache.glob(".building-*/temporary/*"))

    interrupted_build(cache, list(compiler.command), compiles, signal.SIGKILL, tmp_path / "temporary")
    assert within(5, lambda: compilers() == [])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defensemble_ops.build._TIMEOUT_S", 0.3)
    with pytest.raises(BackendBuildError, match="timed out"):
        ensure_backend(cache_dir=tmp_path / "cache", compiler=[script(tmp_path, "compiler", SLOW)], on_progress=lambda text: None)
    assert within(5, lambda: not runs(int((tmp_path / "compiler.child").read_text())))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_a_living_process_builds_in_is_left(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    child = tmp_path / "compiler.child"
    command = [sys.executable, "-c", BUILD, str(cache), script(tmp_path, "compiler", SLOW)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as building:
        try:
            assert within(60, child.exists)
            (theirs,) = cache.iterdir()
            built = ensure_backend(cache_dir=cache, compiler=[script(tmp_path, "quick", COMPILES)], on_progress=lambda text: None)
            assert set(cache.iterdir()) == {theirs, built}
            assert (theirs / "temporary").is_dir()
            assert building.poll() is None
        finally:
            building.kill()
