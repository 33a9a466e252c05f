"""Find a C++ compiler."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

from .errors import BuildError

COMPILERS_TRIED = ("c++", "g++", "clang++")

# Oldest glibc that a library built by zig supports.
_ZIG_GLIBC = "2.31"
_VERSION_TIMEOUT_S = 60
_LINES_SHOWN = 20


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command line and the first line of its `--version` output.

    Example:
        >>> find_compiler()
        Compiler(command=('/usr/bin/c++',), version='c++ (Debian 12.2.0-14) 12.2.0')
    """

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"{shlex.join(self.command)} ({self.version})"


def find_compiler() -> Compiler | None:
    """Find a C++ compiler: `$CXX`, else c++, g++ or clang++ on PATH, else the wheel ziglang; return None if there is none.

    Raises:
        BuildError: `$CXX` is set to something that does not run.
    """
    stated = os.environ.get("CXX", "").strip()
    if stated:
        return compiler_from_command(tuple(shlex.split(stated)), "the environment variable CXX")
    for name in COMPILERS_TRIED:
        if (path := shutil.which(name)) is not None:
            return compiler_from_command((path,), "PATH")
    if importlib.util.find_spec("ziglang") is not None:
        target = f"{platform.machine()}-linux-gnu.{_ZIG_GLIBC}"
        return compiler_from_command((sys.executable, "-m", "ziglang", "c++", "-target", target), "the wheel ziglang")
    return None


def no_compiler_error(what: str) -> BuildError:
    """Return the error for a build of `what` without a compiler."""
    return BuildError(
        f"no C++ compiler found for building {what}; looked for $CXX, {', '.join(COMPILERS_TRIED)} on PATH and the wheel ziglang; "
        "run `apt-get install g++` or `pip install ziglang`"
    )


def compiler_from_command(command: tuple[str, ...], origin: str) -> Compiler:
    """Return the compiler of a command line, after asking for its version.

    Args:
        command: The command line.
        origin: Where it was found, for the error.

    Raises:
        BuildError: It does not run, or prints no version.
    """
    # `zig c++ -target T --version` prints the version of clang.
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C++ compiler from {origin}, `{shlex.join(command)}`, does not run: {error}") from error
    if answer.returncode != 0 or not answer.stdout.strip():
        raise BuildError(
            f"the C++ compiler from {origin}, `{shlex.join(command)}`, does not print its version (exit status {answer.returncode}): "
            f"{last_lines(answer.stderr)}"
        )
    return Compiler(command, answer.stdout.strip().splitlines()[0])


def last_lines(text: str) -> str:
    """Return the last lines of what a compiler wrote."""
    return "\n".join(text.strip().splitlines()[-_LINES_SHOWN:])
