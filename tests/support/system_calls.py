"""The system calls by which a process changes files, as strace writes them down."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_CALLS = (
    "openat,creat,write,writev,pwrite64,copy_file_range,sendfile,truncate,ftruncate,fsync,fdatasync,rename,renameat,renameat2,link,linkat,"
    "symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
_LINE = re.compile(r"(\w+)\((.*)\) += (-?\d+)(.*)")
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.{3})?|(?:\d+|AT_FDCWD)<((?:[^>\\]|\\x[0-9a-f]{2})*)>|([A-Z_|0-9]+)')


@dataclass(frozen=True)
class Call:
    """A call that succeeded: its name, the paths it is about, the bytes that it writes, and its flags."""

    name: str
    paths: tuple[str, ...]
    content: bytes = b""
    flags: str = ""


def why_no_strace(place: Path) -> str | None:
    """Why system calls cannot be read here; None where they can."""
    try:
        done = subprocess.run(["strace", "-f", "-o", str(place / "probe"), "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "strace is not installed: `apt-get install strace`"
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


def traced(code: str, arguments: Sequence[str], place: Path) -> list[Call]:
    """Run Python code in a process of its own, and return its calls in the order in which they ended, with those of its threads.

    Args:
        code: The program.
        arguments: `sys.argv[1:]` of it.
        place: Where strace writes.
    """
    if (reason := why_no_strace(place)) is not None:
        pytest.skip(reason)
    log = place / "strace"
    options = ["-f", "-y", "-xx", "-s", str(1 << 24), "-e", f"trace={_CALLS}", "-e", "signal=none", "-o", str(log)]
    done = subprocess.run(
        ["strace", *options, sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    calls = []
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        process, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            begun[process] = text.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            text = begun.pop(process) + text[resumed.end() :]
        found = _LINE.fullmatch(text)
        if found is not None and int(found[3]) >= 0:
            calls.append(_call(found[1], found[2], found[4]))
    return calls


def _call(name: str, arguments: str, result: str) -> Call:
    paths: list[str] = []
    content, flags, folder = b"", "", ""
    for text, cut, descriptor, other in _ARGUMENT.findall(arguments):
        if text:
            assert not cut, f"strace cut the content of {name} short"
            value = bytes.fromhex(text.replace("\\x", ""))
            if name == "write":
                content = value
            else:
                paths.append(f"{folder}/{value.decode()}" if folder and not value.startswith(b"/") else value.decode())
                folder = ""
        elif descriptor:
            path = re.sub(r"\\x([0-9a-f]{2})", lambda one: chr(int(one[1], 16)), descriptor)
            if name.endswith("at") or name == "renameat2":
                folder = path
            else:
                paths.append(path)
        elif other and not other.isdigit():
            flags = other
    return Call(name, tuple(paths), content, flags)
