"""Our declarations of the two C interfaces, compared with their own sources (listed in real_headers.json)."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from defensemble_ops.library import NATIVE
from defensemble_server.runtime.backend_build import Compiler
from tests.support.backend_triton import tritonserver

REAL = json.loads((Path(__file__).parent / "real_headers.json").read_text())


def declared(source: Path) -> tuple[list[str], list[str]]:
    """Names of the slots of OrtApi and of all enumerators in the headers."""
    onnxruntime = (NATIVE / "include" / "onnxruntime_api.h").read_text()
    triton = (source / "include" / "triton_api.h").read_text()
    slots = re.findall(r"^  [\w ]+\*? \(\*(\w+)\)\(", onnxruntime.split("\nstruct OrtApi {")[1].split("\n};")[0], re.MULTILINE)
    enums = [body for text in (onnxruntime, triton) for body in re.findall(r"enum \w+ : \w+ \{(.*?)\}", text, re.DOTALL)]
    return slots, [name for body in enums for name in re.findall(r"(\w+)(?: = \d+)?(?:,|\s*$)", body)]


def test_offsets_and_values_are_the_real_ones(source: Path, compiler: Compiler, tmp_path: Path) -> None:
    slots, enums = declared(source)
    lines = [f'std::printf("{name} %zu\\n", offsetof(OrtApi, {name}) / sizeof(void*));' for name in slots]
    lines += [f'std::printf("{name} %d\\n", static_cast<int>({name}));' for name in enums]
    program = tmp_path / "print.cc"
    includes = '#include <cstdio>\n#include "include/onnxruntime_api.h"\n#include "include/triton_api.h"\n'
    program.write_text(f"{includes}int main() {{ {' '.join(lines)} }}\n")
    subprocess.run([*compiler.command, "-std=c++17", f"-I{source}", f"-I{NATIVE}", str(program), "-o", str(tmp_path / "print")], check=True)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    assert {name: int(number) for name, number in map(str.split, printed.splitlines())} == {**REAL["slots"], **REAL["enums"]}
    assert len(slots) == len(REAL["slots"]) == 54
    assert len(enums) == len(REAL["enums"])


def test_the_real_triton_has_every_declared_function(source: Path) -> None:
    functions = re.findall(r"\b(TRITON(?:SERVER|BACKEND)_\w+)\(", (source / "include" / "triton_api.h").read_text())
    assert len(functions) > 30
    _, libraries = tritonserver()
    (library,) = libraries.glob("libtritonserver-*.so")
    names = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1].partition("@")[0] for line in names.splitlines()}
    assert set(functions) - exported == set()
