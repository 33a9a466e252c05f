"""Check that the operator library for mask-aware models is built, and loads."""

from __future__ import annotations

import shlex
from pathlib import Path

from defensemble_ops import BuildError
from defensemble_ops.compiler import find_compiler
from defensemble_ops.library import built_library, instruction_set_of
from defensemble_ops.sessions import registration_problem

_NAME = "operator library"


def operator_check() -> tuple[str, str, str, str]:
    """Return name, status, text and fix of a `Check` of the operator library."""
    path = built_library()
    if path is not None:
        return _check_built(path)
    try:
        compiler = find_compiler()
    except BuildError as error:
        return _NAME, "WARN", f"not built, and it cannot be: {error}", "unset CXX, or set it to a compiler that runs"
    if compiler is None:
        text = "not built, and there is no C++ compiler: mask-aware models run densely"
        return _NAME, "WARN", text, "apt-get install g++, or pip install ziglang"
    return _NAME, "WARN", "not built yet; `defensemble serve` and `defensemble.ops` build it, once", "defensemble serve, or make install"


def _check_built(path: Path) -> tuple[str, str, str, str]:
    try:
        instruction_set = instruction_set_of(path)
    except ValueError as error:
        return _NAME, "FAIL", f"mask-aware models run densely: {error}", "unset DEFENSEMBLE_OPS_ISA"
    except OSError as error:
        return _NAME, "FAIL", f"{path} cannot be loaded, so mask-aware models run densely: {error}", _rebuild(path)
    try:
        problem = registration_problem(path)
    except ImportError as error:
        return _NAME, "WARN", f"{path} ({instruction_set}); ONNX Runtime cannot be asked: {error}", "pip install 'defensemble[server]'"
    if problem is not None:
        return _NAME, "FAIL", f"ONNX Runtime refuses {path}, so mask-aware models run densely: {problem}", _rebuild(path)
    return _NAME, "PASS", f"{path}, which uses {instruction_set} and loads in ONNX Runtime", ""


def _rebuild(path: Path) -> str:
    return f"rm -r {shlex.quote(str(path.parent))}, then defensemble serve"
