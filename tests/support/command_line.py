"""`defensemble` as a user calls it: a process of its own, found on PATH."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from defensemble.cli import cli

# A command of a user never takes this long here; a test that hangs is to end.
TIMEOUT_S = 150


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with `defensemble`'s folder first on PATH, and changes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **changes}


def start(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `defensemble ARGUMENTS`; its output is to be read."""
    return subprocess.Popen(
        [sys.executable, "-m", "defensemble", *map(str, arguments)],
        cwd=cwd,
        env=dict(env or environment()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",  # of a path that is no UTF-8
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a command's end; it is killed where it takes too long."""
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `defensemble ARGUMENTS` to its end."""
    return finish(start(*arguments, cwd=cwd, env=env))


def succeed(*arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed; returns its standard output."""
    done = run(*arguments, cwd=cwd, env=env)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Address:
    """Where a server that was left running listens, as `serve --detach` printed it."""

    grpc: str
    http: str
    metrics: str

    @property
    def grpc_port(self) -> int:
        return int(self.grpc.rpartition(":")[2])


def address_from(output: str) -> Address:
    """Read what `serve` and `demo` print of a server."""
    found = dict(re.findall(r"^  (gRPC|HTTP|metrics) +(\S+)$", output, re.MULTILINE))
    return Address(found["gRPC"], found["HTTP"], found["metrics"])


def error_message(done: subprocess.CompletedProcess[str]) -> str:
    """Return the text after `Error: `, which a failed command must print once and without a traceback."""
    assert done.returncode not in (0, None), done.stdout + done.stderr
    assert done.returncode > 0, f"it died of signal {-done.returncode}"
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    parts = re.split(r"^Error: ", done.stderr, flags=re.MULTILINE)
    assert len(parts) == 2, f"expected one error: {done.stderr!r}"
    return parts[1].strip()


def context_of(*words: str) -> click.Context:
    """What these words behind `defensemble` are parsed to; raises where no command takes them. What they name need not be there."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        command = command.commands[rest.pop(0)]
    return command.make_context("example", rest)
