"""Build a shared library from C++ source on first use, and keep it in the user's cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from .compiler import Compiler, last_lines
from .compiler_process import building_folder, run_compilers
from .errors import BuildError

# Set to 1 in CI, where warnings are errors. A newer compiler may warn about more, which must not stop a user.
WARNINGS_AS_ERRORS = "DEFENSEMBLE_BACKEND_WERROR"

_TIMEOUT_S = 600
_BUILD_BYTES = 8 << 20  # more than a build writes with g++ (measured: 171,224 for the backend)


@dataclass(frozen=True)
class Unit:
    """A translation unit: a source file, and flags that only this unit gets. One file can be several units.

    Args:
        source: The source file.
        flags: The flags.
        name: The name of its object file; that of the source without its suffix by default.
    """

    source: Path
    flags: tuple[str, ...] = ()
    name: str = ""

    @property
    def object_name(self) -> str:
        """The file name of its object."""
        return f"{self.name or self.source.stem}.o"


@dataclass(frozen=True)
class Library:
    """A shared library that can be built.

    Args:
        what: What it is, for messages: "the operator library".
        path: Its path in the folder of a build.
        units: What is compiled, each into an object.
        headers: The other source files. A build is only reused while they are the same, too.
        flags: The flags of all units.
        include_folders: Where the compiler looks for headers.
        link_flags: The flags of the link.

    Example:
        library = Library("an example", "libexample.so", (Unit(Path("example.cc")),))
        build(library, find_compiler(), cache=cache_folder("example"))
    """

    what: str
    path: str
    units: tuple[Unit, ...]
    headers: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()
    include_folders: tuple[Path, ...] = ()
    link_flags: tuple[str, ...] = ()


def cache_folder(name: str) -> Path:
    """Return the folder of a kind of builds: `$XDG_CACHE_HOME/defensemble/NAME` (`~/.cache/...`)."""
    return platformdirs.user_cache_path("defensemble") / name


def build(
    library: Library,
    compiler: Compiler,
    *,
    cache: Path,
    on_progress: Callable[[str], None] | None = None,
    complete: Callable[[Path], None] | None = None,
    source: str | None = None,
) -> Path:
    """Build a library unless it is cached, and return the folder of the build, in which it is `library.path`.

    The cache keeps one build per source, flags and compiler version. A build is renamed into place when it is complete: two processes may
    build concurrently, and a failed or interrupted build leaves nothing. The next build removes the remains of a killed one.

    Args:
        library: What to build.
        compiler: The compiler.
        cache: The folder of builds.
        on_progress: Receives a message before a build; by default it is printed to standard error.
        complete: Called with the folder of a new build, to add files to it, before it is renamed.
        source: The digest of all that the build is made from; that of the library by default.

    Raises:
        BuildError: The build failed; the text then ends in the compiler's last lines.
        OSError: The source is missing, or the cache, or the compiler's folder for temporary files, is full or cannot be written.
    """
    built = cache / f"{source or source_digest(library)}-{_compiler_digest(compiler)}"
    if (built / library.path).is_file():
        return built
    message = f"building {library.what} (once) with {compiler} ..."
    on_progress(message) if on_progress is not None else print(message, file=sys.stderr)  # noqa: T201
    with building_folder(cache) as folder:
        finished = folder / "built"
        try:
            _compile(library, compiler, finished / library.path, folder)
        except BuildError:
            _check_space(cache)
            raise
        if complete is not None:
            complete(finished)
        finished.chmod(0o755)
        _sync_all(finished)  # after a power cut, an incomplete library must not look complete
        try:
            finished.rename(built)
        except OSError:
            # A folder cannot replace a folder that is not empty: another process finished the same build first.
            if not (built / library.path).is_file():
                raise
    return built


def find_built(library: Library, *, cache: Path, source: str | None = None) -> Path | None:
    """Find the folder of a cached build of this source with these flags, by any compiler; return None if there is none.

    Args:
        library: The library.
        cache: The folder of builds.
        source: As for `build`.
    """
    builds = cache.glob(f"{source or source_digest(library)}-*")
    return next((folder for folder in sorted(builds) if (folder / library.path).is_file()), None)


def source_digest(library: Library) -> str:
    """Return 16 hex digits that differ with the source, the flags and the machine."""
    digest = hashlib.sha256()
    for part in (platform.machine(), library.path, *_common_flags(library), "", *library.link_flags):
        digest.update(part.encode() + b"\0")
    for unit in library.units:
        digest.update("\0".join((unit.object_name, *unit.flags, "")).encode() + _content(unit.source))
    for header in library.headers:
        digest.update(f"{header.parent.name}/{header.name}\0".encode() + _content(header))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    return f"{len(content)}\0".encode() + content


def _compiler_digest(compiler: Compiler) -> str:
    return hashlib.sha256("\0".join((*compiler.command, compiler.version)).encode()).hexdigest()[:16]


def _common_flags(library: Library) -> tuple[str, ...]:
    return (*library.flags, "-Werror") if os.environ.get(WARNINGS_AS_ERRORS) == "1" else library.flags


def _compile(library: Library, compiler: Compiler, target: Path, folder: Path) -> None:
    target.parent.mkdir(parents=True)
    temporary, objects = folder / "temporary", folder / "objects"
    temporary.mkdir()
    objects.mkdir()
    flags = [*_common_flags(library), *(f"-I{include}" for include in library.include_folders)]
    compile_all = [
        [*compiler.command, *flags, *unit.flags, "-c", str(unit.source), "-o", str(objects / unit.object_name)] for unit in library.units
    ]
    objects_made = [str(objects / unit.object_name) for unit in library.units]
    link = [*compiler.command, "-shared", *objects_made, "-o", str(target), *library.link_flags]
    try:
        run_compilers(compile_all, temporary=temporary, timeout_s=_TIMEOUT_S)
        run_compilers([link], temporary=temporary, timeout_s=_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        raise _failure(library, compiler, error.returncode, error.output) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"building {library.what} with {compiler} failed: {error}") from error
    if not target.is_file():
        raise _failure(library, compiler, 0, "")


def _failure(library: Library, compiler: Compiler, status: int, output: str) -> BuildError:
    return BuildError(
        f"building {library.what} with {compiler} failed with exit status {status}; "
        f"expected a compiler for C++17 with its standard library (`apt-get install g++`, or set CXX). Last lines of the compiler:\n"
        f"{last_lines(output)}"
    )


def _check_space(cache: Path) -> None:
    """Raise an OSError if the disk is full: a compiler reports that only as text, in many languages."""
    try:
        with tempfile.TemporaryFile(dir=cache) as file:
            os.posix_fallocate(file.fileno(), 0, _BUILD_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(cache)) from error


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _sync_all(folder: Path) -> None:
    for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Some file systems cannot flush folders.
            with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
