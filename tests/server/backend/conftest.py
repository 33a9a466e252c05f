"""The backend, and the servers that run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from defensemble_ops.library import NATIVE
from defensemble_server.runtime.backend_build import FLAGS, Compiler, ensure_backend, find_compiler, onnxruntime_library
from defensemble_server.runtime.package_data import data_file
from tests.support.backend_triton import Triton

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def source() -> Path:
    return data_file("onnxruntime_backend")


@pytest.fixture(scope="session")
def compiler() -> Compiler:
    found = find_compiler()
    assert found is not None, "these tests need a C++ compiler: apt-get install g++"
    return found


@pytest.fixture(scope="session")
def backend_directory() -> Path:
    """In the user's own cache, as everyone else's."""
    return ensure_backend()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, source: Path, compiler: Compiler) -> Callable[[str], Path]:
    """Compile one of the C++ files in this folder into a shared library."""
    folder = tmp_path_factory.mktemp("compiled")

    def compile_library(name: str) -> Path:
        library = folder / f"lib{name}.so"
        if not library.exists():
            command = [
                *compiler.command,
                *FLAGS,
                "-shared",
                f"-I{source}",
                f"-I{NATIVE}",
                str(HERE / f"{name}.cc"),
                "-o",
                str(library),
                "-ldl",
            ]
            subprocess.run(command, check=True)
        return library

    return compile_library


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory, backend_directory: Path) -> Iterator[Triton]:
    """A server on the real ONNX Runtime."""
    settings = {"library": str(onnxruntime_library())}
    with Triton(tmp_path_factory.mktemp("triton"), backend_directory, settings) as server:
        yield server


@pytest.fixture(scope="session")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "records.jsonl"


@pytest.fixture(scope="session")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, backend_directory: Path, compiled: Callable[[str], Path], record_file: Path
) -> Iterator[Triton]:
    """A server on the recording stand-in, with thread counts on its command line, and one core, on which one run follows another."""
    settings = {"intra_op_thread_count": "2", "inter_op_thread_count": "3"}
    environment = {
        # The library by the environment here, by the command line in the other server.
        "ONNXRUNTIME_LIBRARY": str(compiled("recorder")),
        "RECORD_LIBRARY": str(onnxruntime_library()),
        "RECORD_FILE": str(record_file),
    }
    with Triton(tmp_path_factory.mktemp("recorded"), backend_directory, settings, environment, verbose=True, cores=1) as server:
        yield server
