"""The operator library: how it is compiled, where it is kept, and what happens without a compiler."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from defensemble_ops import BuildError, instruction_set, library_path
from defensemble_ops.compiler import compiler_from_command
from defensemble_ops.library import LIBRARY_NAME, NATIVE, built_library, ensure_library, instruction_set_of, operator_library
from defensemble_ops.sessions import registration_problem
from tests.server.backend.test_building import COMPILES, empty_path, hide, script
from tests.support.facts import assert_facts, raises


def flags_of_kernels() -> dict[str, tuple[str, ...]]:
    units = [unit for unit in operator_library().units if unit.source.name == "kernels.cc"]
    return {unit.flags[0]: unit.flags[1:] for unit in units}


def test_the_kernels_are_compiled_for_each_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = operator_library()
    assert {unit.source for unit in library.units} == set(NATIVE.glob("*.cc"))
    assert set(library.headers) == set(NATIVE.rglob("*.h"))
    names = [unit.object_name for unit in library.units]
    assert len(set(names)) == len(names)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = flags_of_kernels()
    assert list(found) == [f"-DDEFENSEMBLE_ISA={name}" for name in ("baseline", "avx2", "avx512")]
    assert found["-DDEFENSEMBLE_ISA=baseline"] == ()
    assert {"-mavx512f", "-mprefer-vector-width=512"} <= set(found["-DDEFENSEMBLE_ISA=avx512"]) - set(found["-DDEFENSEMBLE_ISA=avx2"])
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert flags_of_kernels() == {"-DDEFENSEMBLE_ISA=baseline": ()}


def test_nothing_but_the_kernels_uses_more_than_any_processor_has_and_no_flag_changes_the_arithmetic() -> None:
    library = operator_library()
    assert [unit for unit in library.units if unit.flags and unit.source.name != "kernels.cc"] == []
    every = {*library.flags, *(flag for unit in library.units for flag in unit.flags)}
    assert not every & {"-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations", "-march=native"}
    assert "-ffp-contract=fast" in every


def test_it_is_built_once(tmp_path: Path) -> None:
    compiler = compiler_from_command((script(tmp_path, "compiler", COMPILES),), "a test")
    messages: list[str] = []
    cache = tmp_path / "cache"
    assert built_library(cache_dir=cache) is None
    first = ensure_library(cache_dir=cache, compiler=compiler, on_progress=messages.append)
    calls = (tmp_path / "runs").read_text()
    assert ensure_library(cache_dir=cache, compiler=compiler, on_progress=messages.append) == first == built_library(cache_dir=cache)
    assert (tmp_path / "runs").read_text() == calls
    assert first.parent.parent == cache
    assert len(messages) == 1
    assert_facts(messages[0], "the operator library | stand-in 1.0")


def test_without_a_compiler_an_earlier_build_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = compiler_from_command((script(tmp_path, "compiler", COMPILES),), "a test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    empty_path(tmp_path, monkeypatch)
    hide("ziglang", monkeypatch)
    with raises(BuildError, "the operator library | $CXX | `apt-get install g++` | `pip install ziglang`"):
        library_path()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # for the stand-in, a shell script
    built = ensure_library(compiler=compiler, on_progress=print)
    assert built == tmp_path / "xdg/defensemble/ops" / built.parent.name / LIBRARY_NAME
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert library_path() == built


def test_a_compiler_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    with raises(BuildError, f"CXX | {tmp_path}/missing"):
        library_path()


def test_the_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFENSEMBLE_OPS_ISA", raising=False)
    best = instruction_set()
    assert best in ("baseline", "avx2", "avx512")
    for name in ("baseline", best):
        monkeypatch.setenv("DEFENSEMBLE_OPS_ISA", name)
        assert instruction_set() == name
    monkeypatch.setenv("DEFENSEMBLE_OPS_ISA", "sse9")
    with raises(ValueError, "DEFENSEMBLE_OPS_ISA | baseline, avx2, avx512 | 'sse9'"):
        instruction_set()
    path = library_path()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with raises(ValueError, "one of baseline, got 'sse9'"):
        instruction_set_of(path)


def test_the_best_instruction_set_of_this_processor_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFENSEMBLE_OPS_ISA", raising=False)
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")]
    if not lines:
        pytest.skip("this processor's instructions are not known")
    flags = set(lines[0].split())
    needed = {"avx512": {"avx512f", "avx512vl", "avx512dq", "avx512bw", "fma"}, "avx2": {"avx2", "fma"}, "baseline": set()}
    best = next(name for name, instructions in needed.items() if instructions <= flags)
    assert instruction_set() == best


def test_the_library_exports_only_its_interface() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed: apt-get install binutils")
    names = subprocess.run(["nm", "-D", "--defined-only", library_path()], capture_output=True, text=True, check=True).stdout
    functions = {line.split()[2] for line in names.splitlines() if line.split()[1] == "T"}
    assert functions == {
        "RegisterCustomOps",
        "defensemble_ops_instruction_set",
        "defensemble_ops_kernels_created",
        "defensemble_ops_runs",
    }


@pytest.mark.slow
def test_the_real_ziglang_builds_a_library_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the wheel ziglang is not installed: pip install ziglang (100 MB, minutes for the first build)")
    empty_path(tmp_path, monkeypatch)
    built = ensure_library(cache_dir=tmp_path / "cache", on_progress=print)
    assert registration_problem(built) is None
    assert instruction_set_of(built) == instruction_set(), "it finds the instructions of this processor, too"
