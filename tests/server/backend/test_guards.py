"""The two interfaces that the backend uses: its error if one of them is missing, too old, or something else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from defensemble_ops.library import NATIVE
from defensemble_server.runtime.backend_build import LIBRARY_NAME, Compiler
from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton
from tests.support.facts import assert_facts


def load_error(folder: Path, backend_directory: Path, settings: dict[str, str], environment: dict[str, str] | None = None) -> str:
    with Triton(folder / "server", backend_directory, settings, environment) as server:
        text = server.load_error(graphs.AFFINE_CONFIG, graphs.affine())
        assert server.alive()
        return text


def test_an_onnxruntime_that_is_too_old(tmp_path: Path, backend_directory: Path, compiled: Callable[[str], Path]) -> None:
    library = compiled("too_old")
    text = load_error(tmp_path, backend_directory, {"library": str(library)})
    expected = (
        f"ONNX Runtime 1.14.1 ('{library}') is too old for this backend: expected 1.20 or later; run: pip install --upgrade onnxruntime"
    )
    assert expected in text


def test_a_library_that_is_missing(tmp_path: Path, backend_directory: Path) -> None:
    text = load_error(tmp_path, backend_directory, {"library": str(tmp_path / "libonnxruntime.so.1")})
    assert f"{tmp_path}/libonnxruntime.so.1" in text
    assert_facts(text, "No such file or directory | onnxruntime 1.20")


def test_a_library_of_another_kind(tmp_path: Path, backend_directory: Path, compiled: Callable[[str], Path]) -> None:
    library = compiled("other_server")
    text = load_error(tmp_path, backend_directory, {"library": str(library)})
    assert_facts(text, f"'{library}' | OrtGetApiBase")


def test_no_library_was_named(tmp_path: Path, backend_directory: Path) -> None:
    text = load_error(tmp_path, backend_directory, {})
    assert_facts(text, "--backend-config=onnxruntime,library=PATH | ONNXRUNTIME_LIBRARY")


@pytest.mark.parametrize(("major", "minor"), [(1, 18), (2, 19)])
def test_a_triton_of_another_version(
    tmp_path: Path, backend_directory: Path, compiled: Callable[[str], Path], major: int, minor: int
) -> None:
    environment = {"LD_PRELOAD": str(compiled("other_server")), "API_MAJOR": str(major), "API_MINOR": str(minor)}
    text = load_error(tmp_path, backend_directory, {}, environment)
    assert_facts(text, "TRITONBACKEND API 1.19 | Triton 2.51")
    assert f"the server has {major}.{minor}" in text


def test_only_tritons_entry_points_are_visible(backend_directory: Path) -> None:
    library = backend_directory / "onnxruntime" / LIBRARY_NAME
    names = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    ours = {name for name in re.findall(r" T (\S+)", names) if not name.startswith("_Z")}
    assert ours == {
        f"TRITONBACKEND_{name}"
        for name in (
            "Initialize",
            "Finalize",
            "GetBackendAttribute",
            "ModelInitialize",
            "ModelFinalize",
            "ModelInstanceInitialize",
            "ModelInstanceFinalize",
            "ModelInstanceExecute",
        )
    }


def test_the_rate_limit_counts_the_messages_that_it_drops(source: Path, compiler: Compiler, tmp_path: Path) -> None:
    program = tmp_path / "limit.cc"
    program.write_text("""
#include <cstdio>
#include "log.h"
int main() {
  onnx_backend::RateLimit limit;
  const auto start = onnx_backend::RateLimit::Clock::now();
  for (const int second : {0, 1, 2, 3, 4, 5, 9, 10, 11, 30}) {
    const auto dropped = limit.admit(start + std::chrono::seconds(second));
    std::printf("%d ", dropped ? static_cast<int>(*dropped) : -1);
  }
}
""")
    subprocess.run([*compiler.command, "-std=c++17", f"-I{source}", str(program), "-o", str(tmp_path / "limit")], check=True)
    admitted = subprocess.run([tmp_path / "limit"], capture_output=True, text=True, check=True).stdout.split()
    # Five in ten seconds; the first of the next ten reports the two that were dropped.
    assert admitted == ["0", "0", "0", "0", "0", "-1", "-1", "2", "0", "0"]


def test_the_source_compiles_without_any_warning(source: Path, compiler: Compiler) -> None:
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wold-style-cast", "-Werror"]
    subprocess.run([*compiler.command, *flags, f"-I{NATIVE}", *sorted(map(str, source.glob("*.cc")))], check=True)
