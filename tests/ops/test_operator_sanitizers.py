"""The operator's tests again, in another process: under gcc's sanitizers of addresses, undefined behaviour and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from defensemble_ops.compiler import Compiler, find_compiler
from defensemble_ops.library import operator_library
from tests.support.operator_programs import OTHER_LIBRARY

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
THREAD = ("-fsanitize=thread",)


def compiler_with(runtimes: tuple[str, ...]) -> tuple[Compiler, str]:
    """A compiler, and the paths of its runtimes for LD_PRELOAD."""
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    found = []
    for name in runtimes:
        answer = subprocess.run([*compiler.command, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(answer.stdout.strip())
        if not path.is_absolute() or not path.exists():
            pytest.skip(f"{compiler} has no {name}: gcc's sanitizer runtimes are needed")
        found.append(str(path.resolve()))
    return compiler, ":".join(found)


def build(folder: Path, compiler: Compiler, sanitizer: tuple[str, ...], optimisation: str) -> Path:
    """The operator library with a sanitizer. Less optimised, because that takes a fifth of the time."""
    library = operator_library()
    flags = [flag for flag in library.flags if not flag.startswith("-O")] + [optimisation, "-fno-omit-frame-pointer", *sanitizer]
    includes = [f"-I{path}" for path in library.include_folders]
    commands = [
        [*compiler.command, *flags, *includes, *unit.flags, "-c", str(unit.source), "-o", str(folder / unit.object_name)]
        for unit in library.units
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    built = folder / "operator.so"
    objects = [str(folder / unit.object_name) for unit in library.units]
    subprocess.run([*compiler.command, "-shared", *sanitizer, *objects, "-o", str(built)], check=True)
    return built


def run_tests(arguments: list[str], **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    finished = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=HERE.parents[1], check=False, timeout=300
    )
    text = finished.stdout + finished.stderr
    assert finished.returncode == 0, text[-6000:]
    assert "Sanitizer" not in text, text[-6000:]
    assert "runtime error:" not in text, text[-6000:]
    return text


def test_addresses_and_undefined_behaviour(tmp_path: Path) -> None:
    compiler, preloaded = compiler_with(("libasan.so", "libubsan.so"))
    library = build(tmp_path, compiler, ADDRESS, "-O0")
    names = ("programs", "bad_programs", "not_finite")
    run_tests(
        [str(HERE / f"test_operator_{name}.py") for name in names],
        LD_PRELOAD=preloaded,
        # Python itself keeps memory until it ends.
        ASAN_OPTIONS="handle_segv=0:alloc_dealloc_mismatch=0:detect_leaks=0:detect_odr_violation=0:verify_asan_link_order=0",
        UBSAN_OPTIONS="print_stacktrace=1",
        **{OTHER_LIBRARY: str(library)},
    )


def test_races_of_concurrent_runs(tmp_path: Path) -> None:
    compiler, preloaded = compiler_with(("libtsan.so",))
    library = build(tmp_path, compiler, THREAD, "-O1")
    run_tests(
        [str(HERE / "test_operator_programs.py"), "-k", "concurrent and 1"],
        LD_PRELOAD=preloaded,
        # ONNX Runtime is not instrumented: the atomics with which its threads wait for each other are invisible, and every read of what
        # another thread of the session computed is reported (252 times). So the callers are the only threads.
        TSAN_OPTIONS="ignore_noninstrumented_modules=1",
        **{OTHER_LIBRARY: str(library)},
    )


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_each_instruction_set(name: str) -> None:
    script = "import defensemble_ops; print(defensemble_ops.instruction_set())"
    environment = {"DEFENSEMBLE_OPS_ISA": name}
    chosen = subprocess.run([sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False)
    if chosen.returncode != 0:
        assert "ValueError" in chosen.stderr
        pytest.skip(f"this processor has no {name}")
    assert chosen.stdout.split()[-1] == name
    run_tests([str(HERE / "test_operator_programs.py"), str(HERE / "test_operator_not_finite.py")], **environment)
