"""The short-lived processes of a guard that restarts its server: one reads the repository, one checks the answers.

Each is sent JSON on standard input and returns JSON on standard output. The admin key comes this way too.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from defensemble_repository.errors import RepositoryError

from ..addresses import claim_ports
from ..errors import ServerError
from ..options import ServeOptions
from ..repository import Repository
from .launch import command_line, prepare, read_content


def child_command() -> list[str]:
    """The command that runs one: with the modules that this process would find, wherever it is started."""
    path = [os.path.abspath(entry) for entry in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; from {__name__} import main; main()"]


def request(folder: Path, options: ServeOptions, start_timeout_s: float) -> dict[str, Any]:
    """What both are sent; `options` with the real ports and the admin key."""
    return {"repository": str(folder), "options": asdict(options), "start_timeout_s": start_timeout_s}


def main() -> None:
    """Do what standard input asks for."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # whatever prints does not print into the answer
    asked = json.loads(sys.stdin.buffer.read())
    try:
        answer = _plan(asked) if asked["do"] == "plan" else _verify(asked)
    except (ServerError, RepositoryError, OSError) as error:
        answer = {"error": str(error)}
    with os.fdopen(answer_to, "w") as file:
        json.dump(answer, file)


def _plan(asked: dict[str, Any]) -> dict[str, Any]:
    """The command for the new start, or why there can be none."""
    options = ServeOptions(**asked["options"])
    ports = claim_ports(options.host, options.ports, guard_pid=os.getppid())
    runtime, content = prepare(Path(asked["repository"]), options, on_progress=_on_progress)
    assert options.admin_key is not None
    command = command_line(runtime, content, options, ports, options.admin_key)
    return {"command": command, "environment": dict(runtime.environment), "models": list(content.models)}


def _verify(asked: dict[str, Any]) -> dict[str, Any]:
    """Which models are not served and why, once the answers of the new server are right."""
    from ..readiness import await_ready

    options = ServeOptions(**asked["options"])
    found = read_content(Path(asked["repository"]), options)
    content = Repository(found.path, {name: model for name, model in found.models.items() if name in asked["models"]}, found.problems)
    assert options.admin_key is not None
    log, timeout_s = Path(asked["log"]), float(asked["start_timeout_s"])
    _, problems = await_ready(asked["pid"], content, options, options.admin_key, log, timeout_s, guard_pid=os.getppid())
    return {"problems": problems}


def _on_progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # into the log
