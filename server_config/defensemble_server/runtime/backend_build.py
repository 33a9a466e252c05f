"""Build the native backend `onnxruntime` from its C++ source on first use, and keep it in the user's cache.

`python -m defensemble_server.runtime.backend_build` builds it and prints the backend directory.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from defensemble_repository.filesystem.atomic_write import sync

from ..errors import BackendBuildError, RuntimeMissingError, ServerError
from .compiler_process import building_folder, run_compiler
from .package_data import data_file, installed

LIBRARY_NAME = "libtriton_onnxruntime.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra")
COMPILERS_TRIED = ("c++", "g++", "clang++")
OLDEST_ONNXRUNTIME = "1.20"
# Set to 1 in CI, where warnings are errors. A newer compiler may warn about more, which must not stop a user.
WARNINGS_AS_ERRORS = "DEFENSEMBLE_BACKEND_WERROR"

# Oldest glibc that a library built by zig supports.
_ZIG_GLIBC = "2.31"
_BUILD_TIMEOUT_S = 600
_BUILD_BYTES = 1 << 20  # more than a build writes (measured: 171,224 with g++)
_VERSION_TIMEOUT_S = 60
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command line and the first line of its `--version` output."""

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"{shlex.join(self.command)} ({self.version})"


def find_compiler() -> Compiler | None:
    """Find a C++ compiler: `$CXX`, else c++, g++ or clang++ on PATH, else the wheel ziglang; return None if there is none.

    Raises:
        BackendBuildError: `$CXX` is set to something that does not run.
    """
    stated = os.environ.get("CXX", "").strip()
    if stated:
        return _compiler_from_command(tuple(shlex.split(stated)), "the environment variable CXX")
    for name in COMPILERS_TRIED:
        if (path := shutil.which(name)) is not None:
            return _compiler_from_command((path,), "PATH")
    if importlib.util.find_spec("ziglang") is not None:
        target = f"{platform.machine()}-linux-gnu.{_ZIG_GLIBC}"
        return _compiler_from_command((sys.executable, "-m", "ziglang", "c++", "-target", target), "the wheel ziglang")
    return None


def ensure_backend(
    *, cache_dir: Path | None = None, compiler: Sequence[str] | None = None, on_progress: Callable[[str], None] | None = None
) -> Path:
    """Build the backend unless it is cached, and return the directory for Triton's `--backend-directory`.

    The cache keeps one build per source, flags and compiler version. A build is renamed into place when it is complete: two processes may
    build concurrently, and a failed or interrupted build leaves nothing. The next build removes the remains of a killed one.

    Args:
        cache_dir: Where builds are kept; `$XDG_CACHE_HOME/defensemble/backend` (`~/.cache/...`) by default.
        compiler: The command line of the compiler; `find_compiler()` by default.
        on_progress: Receives a message before a build; by default it is printed to standard error.

    Raises:
        BackendBuildError: There is no compiler, or the build failed; the text then ends in the compiler's last lines.
        OSError: The source is missing, or the cache, or the compiler's folder for temporary files, is full or cannot be written.
    """
    chosen = find_compiler() if compiler is None else _compiler_from_command(tuple(compiler), "the argument `compiler`")
    if chosen is None:
        if (kept := built_backend(cache_dir=cache_dir)) is not None:
            return kept  # built earlier from the same source and flags
        raise BackendBuildError(
            "no C++ compiler found for building the onnxruntime backend; looked for $CXX, "
            f"{', '.join(COMPILERS_TRIED)} on PATH and the wheel ziglang; run `apt-get install g++` or `pip install ziglang`"
        )
    source = data_file("onnxruntime_backend")
    cache = _cache(cache_dir)
    built = cache / build_digest(source, chosen)
    if (built / "onnxruntime" / LIBRARY_NAME).is_file():
        return built
    message = f"building the onnxruntime backend (once) with {chosen} ..."
    on_progress(message) if on_progress is not None else print(message, file=sys.stderr)  # noqa: T201
    with building_folder(cache) as folder:
        finished = folder / "built"
        try:
            _compile(source, chosen, finished / "onnxruntime" / LIBRARY_NAME, temporary=folder / "temporary")
        except BackendBuildError:
            _check_space(cache)
            raise
        finished.chmod(0o755)
        sync(
            [finished / "onnxruntime" / LIBRARY_NAME, finished / "onnxruntime", finished]
        )  # after a power cut, an incomplete library must not look complete
        _rename_unless_there(finished, built)
    return built


def built_backend(*, cache_dir: Path | None = None) -> Path | None:
    """Find a cached build of this source with these flags, by any compiler; return None if there is none."""
    builds = _cache(cache_dir).glob(f"{_source_digest(data_file('onnxruntime_backend'))}-*/onnxruntime/{LIBRARY_NAME}")
    return next((library.parent.parent for library in sorted(builds)), None)


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


def compiler_flags() -> tuple[str, ...]:
    """Return the compiler flags, with `-Werror` if `DEFENSEMBLE_BACKEND_WERROR=1` is set in the environment."""
    return (*FLAGS, "-Werror") if os.environ.get(WARNINGS_AS_ERRORS) == "1" else FLAGS


def build_digest(source: Path, compiler: Compiler) -> str:
    """Return the cache key of a build: 16 hex digits for source, flags and machine, a dash, and 16 for the compiler."""
    digest = hashlib.sha256("\0".join((*compiler.command, compiler.version)).encode())
    return f"{_source_digest(source)}-{digest.hexdigest()[:16]}"


def _cache(folder: Path | None) -> Path:
    return platformdirs.user_cache_path("defensemble") / "backend" if folder is None else folder


def _source_digest(source: Path) -> str:
    digest = hashlib.sha256()
    for part in (*compiler_flags(), platform.machine()):
        digest.update(part.encode() + b"\0")
    for path in _source_files(source):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(source).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _source_files(source: Path) -> list[Path]:
    return sorted([*source.glob("*.cc"), *source.glob("*.h"), *source.glob("include/*.h")])


def _compiler_from_command(command: tuple[str, ...], origin: str) -> Compiler:
    # `zig c++ -target T --version` prints the version of clang.
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendBuildError(f"the C++ compiler from {origin}, `{shlex.join(command)}`, does not run: {error}") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        raise BackendBuildError(
            f"the C++ compiler from {origin}, `{shlex.join(command)}`, does not print its version (exit status {answer.returncode}): "
            f"{_last_lines(answer.stderr)}"
        )
    return Compiler(command, answer.stdout.strip().splitlines()[0])


def _compile(source: Path, compiler: Compiler, library: Path, *, temporary: Path) -> None:
    library.parent.mkdir(parents=True)
    temporary.mkdir()
    units = [str(path) for path in _source_files(source) if path.suffix == ".cc"]
    command = [*compiler.command, *compiler_flags(), f"-I{source}", *units, "-o", str(library), "-ldl"]
    try:
        result = run_compiler(command, temporary=temporary, timeout_s=_BUILD_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendBuildError(f"building the onnxruntime backend with {compiler} failed: {error}") from error
    if result.returncode != 0 or not library.is_file():
        raise BackendBuildError(
            f"building the onnxruntime backend with {compiler} failed with exit status {result.returncode}; "
            f"expected a compiler for C++17 with its standard library (`apt-get install g++`, or set CXX). Last lines of the compiler:\n"
            f"{_last_lines(result.stdout)}"
        )


def _check_space(cache: Path) -> None:
    """Raise an OSError if the disk is full: a compiler reports that only as text, in many languages."""
    try:
        with tempfile.TemporaryFile(dir=cache) as file:
            os.posix_fallocate(file.fileno(), 0, _BUILD_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(cache)) from error


def _rename_unless_there(finished: Path, built: Path) -> None:
    try:
        finished.rename(built)
    except OSError:
        # A folder cannot replace a folder that is not empty: another process finished the same build first.
        if not (built / "onnxruntime" / LIBRARY_NAME).is_file():
            raise


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LINES_SHOWN:])


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
