"""The CMake build for developers: it compiles what the installed backend is compiled from, and its library serves."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from defensemble_server.runtime.backend_build import Compiler, onnxruntime_library
from tests.support import backend_graphs as graphs
from tests.support.backend_triton import Triton

pytestmark = pytest.mark.slow


def test_cmake_builds_a_backend_that_serves(tmp_path: Path, source: Path, compiler: Compiler) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: pip install cmake, or apt-get install cmake")
    build = tmp_path / "build"
    with_compiler = [f"-DCMAKE_CXX_COMPILER={compiler.command[0]}"] if len(compiler.command) == 1 else []
    subprocess.run(["cmake", "-S", source, "-B", build, *with_compiler], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    commands = json.loads((build / "compile_commands.json").read_text())
    assert {Path(command["file"]) for command in commands} == set(source.glob("*.cc"))
    x = np.ones((2, 4), np.float32)
    with Triton(tmp_path / "server", build, {"library": str(onnxruntime_library())}) as server:
        answer = server.infer(server.load(graphs.AFFINE_CONFIG, graphs.affine()), {"x": x})
    np.testing.assert_array_equal(answer["y"], 2 * x + 1)
