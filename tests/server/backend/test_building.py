"""The build: once for each source, flags and compiler; whole or not at all; with a word on what is missing."""

from __future__ import annotations

import importlib.util
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from defensemble_ops.build import WARNINGS_AS_ERRORS
from defensemble_ops.library import LIBRARY_NAME as OPERATOR_LIBRARY_NAME
from defensemble_server import BackendBuildError, RuntimeMissingError
from defensemble_server.runtime.backend_build import (
    LIBRARY_NAME,
    Compiler,
    built_backend,
    ensure_backend,
    find_compiler,
    onnxruntime_library,
)
from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton
from tests.support.facts import assert_each, assert_facts, raises

ROOT = Path(__file__).parents[3]


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# A fake compiler: prints a version, writes its output file, records that it ran.
COMPILES = """
[ "$1" = --version ] && { echo "stand-in 1.0"; exit 0; }
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done
echo library > "$out"
"""
FAILS = """
[ "$1" = --version ] && { echo "stand-in 1.0"; exit 0; }
while [ $# -gt 1 ]; do [ "$1" = -o ] && out="$2"; shift; done
echo half > "$out"
i=0; while [ $i -lt 50 ]; do i=$((i + 1)); echo "error number $i" >&2; done
exit 3
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    return script(tmp_path, "compiler", COMPILES)


def runs(tmp_path: Path) -> int:
    path = tmp_path / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_builds_once_with_a_word(tmp_path: Path, stand_in: str) -> None:
    messages: list[str] = []
    first = ensure_backend(cache_dir=tmp_path / "cache", compiler=[stand_in], on_progress=messages.append)
    assert (first / "onnxruntime" / LIBRARY_NAME).is_file()
    assert (first / "onnxruntime" / OPERATOR_LIBRARY_NAME).is_file()
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    once = runs(tmp_path)
    second = ensure_backend(cache_dir=tmp_path / "cache", compiler=[stand_in], on_progress=messages.append)
    assert first == second
    assert runs(tmp_path) == once > 2
    assert_each(messages, *[f"{what} | {stand_in} | stand-in 1.0" for what in ("the onnxruntime backend", "the operator library")])
    assert list((tmp_path / "cache").iterdir()) == [first]


def test_the_word_goes_to_standard_error(tmp_path: Path, stand_in: str, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_backend(cache_dir=tmp_path / "cache", compiler=[stand_in])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert_facts(captured.err, "onnxruntime")


def test_a_failed_build_leaves_nothing_and_shows_the_last_lines(tmp_path: Path) -> None:
    failing = script(tmp_path, "compiler", FAILS)
    with pytest.raises(BackendBuildError) as caught:
        ensure_backend(cache_dir=tmp_path / "cache", compiler=[failing], on_progress=lambda _: None)
    text = str(caught.value)
    assert_facts(text, "exit status 3 | C++17")
    assert "apt-get install g++" in text
    assert text.endswith("error number 49\nerror number 50")
    assert "error number 30\n" not in text
    assert list((tmp_path / "cache").iterdir()) == []
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_a_compiler_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    idle = script(tmp_path, "compiler", 'echo "stand-in 1.0"')
    with pytest.raises(BackendBuildError, match="exit status 0"):
        ensure_backend(cache_dir=tmp_path / "cache", compiler=[idle], on_progress=lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_broken_build_of_the_real_compiler(tmp_path: Path, compiler: Compiler) -> None:
    with pytest.raises(BackendBuildError, match=r"unrecognized|unknown|unsupported"):
        ensure_backend(cache_dir=tmp_path, compiler=[*compiler.command, "-fno-such-flag-as-this"], on_progress=lambda _: None)


def test_two_at_once_give_one_build(tmp_path: Path) -> None:
    slow = script(tmp_path, "compiler", COMPILES.replace("echo run", "sleep 0.02; echo run"))
    built: list[Path] = []

    def build() -> None:
        built.append(ensure_backend(cache_dir=tmp_path / "cache", compiler=[slow], on_progress=lambda _: None))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4
    assert len(set(built)) == 1
    assert list((tmp_path / "cache").iterdir()) == [built[0]]


def test_a_cache_that_cannot_be_written(tmp_path: Path, stand_in: str) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(OSError, match="cache"):
        ensure_backend(cache_dir=tmp_path / "cache", compiler=[stand_in], on_progress=lambda _: None)


def test_warnings_are_errors_only_in_ci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    compiler = script(tmp_path, "compiler", COMPILES.replace("echo run", 'echo "$*"'))

    def build(stated: str | None) -> Path:
        if stated is None:
            monkeypatch.delenv(WARNINGS_AS_ERRORS, raising=False)
        else:
            monkeypatch.setenv(WARNINGS_AS_ERRORS, stated)
        built = ensure_backend(cache_dir=cache, compiler=[compiler], on_progress=lambda _: None)
        assert built_backend(cache_dir=cache) == built
        return built

    user, ci = build(None), build("1")
    assert user != ci
    assert build("0") == build("") == build(None) == user
    compiled = [line.split() for line in (tmp_path / "runs").read_text().splitlines() if " -c " in line]
    strict = ["-Werror" in words for words in compiled]
    assert strict == [False] * (len(compiled) // 2) + [True] * (len(compiled) // 2), "first those of the user, then those of CI"
    assert f"\nexport {WARNINGS_AS_ERRORS}=1\n" in (ROOT / ".ci/run").read_text()


def test_the_cache_is_the_users(tmp_path: Path, stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ensure_backend(compiler=[stand_in], on_progress=lambda _: None).parent == tmp_path / "xdg" / "defensemble" / "backend"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (
        ensure_backend(compiler=[stand_in], on_progress=lambda _: None).parent == tmp_path / "home" / ".cache" / "defensemble" / "backend"
    )


def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    return programs


def hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package one that is not installed: no folder that holds it is searched."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / name).exists()])
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_path(tmp_path, monkeypatch)
    hide("ziglang", monkeypatch)
    assert find_compiler() is None
    with raises(BackendBuildError, "C++ compiler | `apt-get install g++` | `pip install ziglang`"):
        ensure_backend(cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_order_in_which_compilers_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = empty_path(tmp_path, monkeypatch)
    ziglang = tmp_path / "packages" / "ziglang"
    ziglang.mkdir(parents=True)
    (ziglang / "__main__.py").write_text("print('clang version 20 of zig')")
    monkeypatch.setattr(sys, "path", [str(ziglang.parent), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ziglang.parent))
    importlib.invalidate_caches()
    found = find_compiler()
    assert found is not None
    assert found.command[:4] == (sys.executable, "-m", "ziglang", "c++")
    assert found.command[4] == "-target"
    assert found.command[5].endswith("-linux-gnu.2.31")
    assert found.version == "clang version 20 of zig"
    for name in ("clang++", "g++", "c++"):
        expected = script(programs, name, f'echo "{name} 1.0"')
        assert find_compiler() == Compiler((expected,), f"{name} 1.0")
    monkeypatch.setenv("CXX", f"{script(tmp_path, 'mine', 'echo mine 2.0')} -m64")
    assert find_compiler() == Compiler((str(tmp_path / "mine"), "-m64"), "mine 2.0")


@pytest.mark.parametrize(("body", "text"), [(None, "/missing"), ("echo broken >&2; exit 1", "version | exit status 1 | broken")])
def test_a_stated_compiler_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str | None, text: str) -> None:
    monkeypatch.setenv("CXX", script(tmp_path, "mine", body) if body else str(tmp_path / "missing"))
    with raises(BackendBuildError, f"CXX | {text}"):
        find_compiler()


def fake_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *libraries: str) -> Path:
    hide("onnxruntime", monkeypatch)
    capi = tmp_path / "packages" / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi.parent / "__init__.py").write_text("raise AssertionError('it must not be imported')")
    for name in libraries:
        (capi / name).touch()
    monkeypatch.setattr(sys, "path", [str(capi.parent.parent), *sys.path])
    importlib.invalidate_caches()
    return capi


def test_the_library_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so")
    capi = fake_onnxruntime(tmp_path, monkeypatch, *names)
    assert onnxruntime_library() == capi / names[0]


def test_an_onnxruntime_without_a_library_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capi = fake_onnxruntime(tmp_path, monkeypatch, "libonnxruntime_providers_shared.so")
    with pytest.raises(RuntimeMissingError) as caught:
        onnxruntime_library()
    assert_facts(str(caught.value), f"libonnxruntime.so | {capi} | pip install --upgrade 'onnxruntime>=1.20'")


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("onnxruntime", monkeypatch)
    with raises(RuntimeMissingError, "ONNX Runtime | pip install --upgrade 'onnxruntime>=1.20'"):
        onnxruntime_library()


def test_as_a_program(tmp_path: Path, stand_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", stand_in)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", "import sys; from defensemble_server.runtime.backend_build import main; sys.exit(main())"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert (Path(done.stdout.rstrip("\n")) / "onnxruntime" / LIBRARY_NAME).is_file()
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert_facts(done.stderr, "C++ compiler | CXX")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_real_ziglang_builds_a_backend_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the wheel ziglang is not installed: pip install ziglang (100 MB, a minute for the first build)")
    empty_path(tmp_path, monkeypatch)
    messages: list[str] = []
    built = ensure_backend(cache_dir=tmp_path / "cache", on_progress=messages.append)
    assert "-m ziglang c++ -target" in messages[0]
    x = np.ones((2, 4), np.float32)
    with Triton(tmp_path / "server", built, {"library": str(onnxruntime_library())}) as server:
        answer = server.infer(server.load(graphs.AFFINE_CONFIG, graphs.affine()), {"x": x})
    np.testing.assert_array_equal(answer["y"], 2 * x + 1)


def test_without_a_compiler_an_earlier_build_of_the_same_source_serves(
    tmp_path: Path, stand_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    built = ensure_backend(cache_dir=cache, compiler=[stand_in], on_progress=lambda _: None)
    monkeypatch.setattr("defensemble_server.runtime.backend_build.find_compiler", lambda: None)
    assert ensure_backend(cache_dir=cache) == built == built_backend(cache_dir=cache)
    assert built_backend(cache_dir=tmp_path / "other") is None
    with pytest.raises(BackendBuildError, match="apt-get install g\\+\\+"):
        ensure_backend(cache_dir=tmp_path / "other")
