"""Build the native backend `onnxruntime` from its C++ source on first use, and keep it in the user's cache.

`python -m defensemble_server.runtime.backend_build` builds it, with the operator library next to it, and prints the backend directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from defensemble_ops import BuildError, build as building, compiler as compilers
from defensemble_ops.build import Library, Unit
from defensemble_ops.compiler import Compiler as Compiler
from defensemble_ops.library import LIBRARY_NAME as OPERATOR_LIBRARY_NAME, NATIVE, ensure_library, operator_library

from ..errors import BackendBuildError, RuntimeMissingError, ServerError
from .package_data import data_file, installed

LIBRARY_NAME = "libtriton_onnxruntime.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
OLDEST_ONNXRUNTIME = "1.20"

_WHAT = "the onnxruntime backend"


def find_compiler() -> Compiler | None:
    """Find a C++ compiler: `$CXX`, else c++, g++ or clang++ on PATH, else the wheel ziglang; return None if there is none.

    Raises:
        BackendBuildError: `$CXX` is set to something that does not run.
    """
    with _backend_errors():
        return compilers.find_compiler()


def ensure_backend(
    *, cache_dir: Path | None = None, compiler: Sequence[str] | None = None, on_progress: Callable[[str], None] | None = None
) -> Path:
    """Build the backend unless it is cached, and return the directory for Triton's `--backend-directory`.

    The directory also contains the operator library, which the backend opens. `defensemble_ops.build.build` states how builds are kept.

    Args:
        cache_dir: Where builds are kept; `$XDG_CACHE_HOME/defensemble/backend` (`~/.cache/...`) by default. Those of the operator library
            are kept in the folder `ops` next to it.
        compiler: The command line of the compiler; `find_compiler()` by default.
        on_progress: Receives a message before a build; by default it is printed to standard error.

    Raises:
        BackendBuildError: There is no compiler, or the build failed; the text then ends in the compiler's last lines.
        OSError: The source is missing, or the cache, or the compiler's folder for temporary files, is full or cannot be written.
    """
    with _backend_errors():
        chosen = find_compiler() if compiler is None else compilers.compiler_from_command(tuple(compiler), "the argument `compiler`")
        if chosen is None:
            if (kept := built_backend(cache_dir=cache_dir)) is not None:
                return kept  # built earlier from the same source and flags
            raise compilers.no_compiler_error(_WHAT)
        cache = _cache(cache_dir)

        def add_operators(folder: Path) -> None:
            operators = ensure_library(cache_dir=cache.with_name("ops"), compiler=chosen, on_progress=on_progress)
            building.link_or_copy(operators, folder / "onnxruntime" / OPERATOR_LIBRARY_NAME)

        library = backend_library(data_file("onnxruntime_backend"))
        return building.build(
            library, chosen, cache=cache, on_progress=on_progress, complete=add_operators, source=_digest_with_operators(library)
        )


def built_backend(*, cache_dir: Path | None = None) -> Path | None:
    """Find a cached build of this source with these flags, by any compiler; return None if there is none."""
    library = backend_library(data_file("onnxruntime_backend"))
    return building.find_built(library, cache=_cache(cache_dir), source=_digest_with_operators(library))


def backend_library(source: Path) -> Library:
    """Describe the backend whose source is in the folder `source`."""
    units = tuple(map(Unit, sorted(source.glob("*.cc"))))
    headers = sorted([*source.glob("*.h"), *source.glob("include/*.h"), *NATIVE.glob("include/*.h")])
    return Library(_WHAT, f"onnxruntime/{LIBRARY_NAME}", units, tuple(headers), FLAGS, (source, NATIVE), ("-ldl",))


def onnxruntime_library() -> Path:
    """Find the shared library of the installed ONNX Runtime wheel, without importing it.

    Raises:
        RuntimeMissingError: The wheel is not installed, or is too old to contain the library.
    """
    fix = f"run `pip install --upgrade 'onnxruntime>={OLDEST_ONNXRUNTIME}'`"
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeMissingError(f"ONNX Runtime is not installed, but serving needs {OLDEST_ONNXRUNTIME} or later: {fix}")
    folders = [Path(location) / "capi" for location in spec.submodule_search_locations]
    libraries = sorted(library for folder in folders for library in folder.glob("libonnxruntime.so*"))
    if not libraries:
        version = installed("onnxruntime") or installed("onnxruntime-gpu") or "of unknown version"
        raise RuntimeMissingError(
            f"the installed ONNX Runtime ({version}) has no libonnxruntime.so in {folders[0]}; "
            f"serving needs {OLDEST_ONNXRUNTIME} or later: {fix}"
        )
    return libraries[-1]


def _cache(folder: Path | None) -> Path:
    return building.cache_folder("backend") if folder is None else folder


def _digest_with_operators(library: Library) -> str:
    digests = f"{building.source_digest(library)}{building.source_digest(operator_library())}"
    return hashlib.sha256(digests.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _backend_errors() -> Iterator[None]:
    try:
        yield
    except BuildError as error:
        raise BackendBuildError(str(error)) from error


def main() -> int:
    """Build the backend, print its directory, and return the exit status."""
    try:
        sys.stdout.write(f"{ensure_backend()}\n")
    except (ServerError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
