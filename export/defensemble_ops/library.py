"""The operator library: how it is built, and what it answers in this process."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

from .build import Library, Unit, build, cache_folder, find_built
from .compiler import Compiler, find_compiler, no_compiler_error

LIBRARY_NAME = "libdefensemble_ops.so"
# Forces the instruction set "avx512", "avx2" or "baseline".
FORCED_INSTRUCTION_SET = "DEFENSEMBLE_OPS_ISA"
NATIVE = Path(__file__).resolve().parent / "native"

# Not -ffast-math: NaN and infinity as in ONNX Runtime.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
_KERNELS = "kernels"  # compiled once per instruction set
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", *_AVX2, "-mprefer-vector-width=512")


def _flags_by_set() -> dict[str, tuple[str, ...]]:
    """Return the compiler's flags for each instruction set of this machine's architecture."""
    return {"baseline": (), "avx2": _AVX2, "avx512": _AVX512} if platform.machine() == "x86_64" else {"baseline": ()}


def operator_library() -> Library:
    """Describe the operator library for this machine's architecture."""
    sources = sorted(NATIVE.glob("*.cc"))
    units = [
        Unit(path, (f"-DDEFENSEMBLE_ISA={name}", *extra), f"{_KERNELS}_{name}")
        for path in sources
        if path.stem == _KERNELS
        for name, extra in _flags_by_set().items()
    ]
    units += [Unit(path) for path in sources if path.stem != _KERNELS]
    headers = sorted(NATIVE.rglob("*.h"))
    return Library("the operator library", LIBRARY_NAME, tuple(units), tuple(headers), _FLAGS, (NATIVE,))


def ensure_library(
    *, cache_dir: Path | None = None, compiler: Compiler | None = None, on_progress: Callable[[str], None] | None = None
) -> Path:
    """Build the operator library unless it is cached, and return its path.

    Args:
        cache_dir: Where builds are kept; `$XDG_CACHE_HOME/defensemble/ops` (`~/.cache/...`) by default.
        compiler: The compiler; `find_compiler()` by default.
        on_progress: Receives a message before a build; by default it is printed to standard error.

    Raises:
        BuildError: There is no compiler and no earlier build, or the build failed.
        OSError: The source is missing, or the cache is full or cannot be written.
    """
    library = operator_library()
    cache = cache_folder("ops") if cache_dir is None else cache_dir
    chosen = find_compiler() if compiler is None else compiler
    if chosen is None:
        if (kept := find_built(library, cache=cache)) is None:
            raise no_compiler_error(library.what)
        return kept / LIBRARY_NAME  # built earlier from the same source and flags
    return build(library, chosen, cache=cache, on_progress=on_progress) / LIBRARY_NAME


def built_library(*, cache_dir: Path | None = None) -> Path | None:
    """Find a cached build of this source with these flags, by any compiler; return None if there is none."""
    built = find_built(operator_library(), cache=cache_folder("ops") if cache_dir is None else cache_dir)
    return None if built is None else built / LIBRARY_NAME


def instruction_set_of(path: Path) -> str:
    """Return the instruction set that the library at `path` uses on this processor: "avx512", "avx2" or "baseline".

    Raises:
        ValueError: The environment variable DEFENSEMBLE_OPS_ISA names none that this processor has.
        OSError: The library cannot be loaded.
    """
    function = ctypes.CDLL(str(path)).defensemble_ops_instruction_set
    function.restype = ctypes.c_char_p
    name = function()
    if name is None:
        stated = os.environ.get(FORCED_INSTRUCTION_SET)
        raise ValueError(
            f"{FORCED_INSTRUCTION_SET} must be an instruction set of this processor, one of {', '.join(_flags_by_set())}, got {stated!r}; "
            "unset it, and the best one is used"
        )
    return str(name.decode())


def runs_of_this_thread() -> int:
    """Return how many nodes the operator library has computed in the calling thread, whatever path it was loaded from."""
    # Every line of a mapped file ends in its path.
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f"/{LIBRARY_NAME}")}
    runs = 0
    for path in mapped:
        function = ctypes.CDLL(path).defensemble_ops_runs
        function.restype = ctypes.c_uint64
        runs += int(function())
    return runs
