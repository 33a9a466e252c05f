"""The short-lived processes of a guard that restarts its server: one prepares the start, one verifies the answers.

Each reads JSON from standard input, including the admin key, and writes JSON to standard output.
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


def start_request(folder: Path, options: ServeOptions, start_timeout_s: float) -> dict[str, Any]:
    """Return the JSON for both, and for the supervisor; `options` must have the real ports and the admin key."""
    return {"repository": str(folder), "options": asdict(options), "start_timeout_s": start_timeout_s}


def main() -> None:
    """Carry out the request on standard input."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # other output must not get into the answer
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = _prepare(request) if request["do"] == "plan" else _verify(request)
    except (ServerError, RepositoryError, OSError) as error:
        answer = {"error": str(error)}
    with os.fdopen(answer_to, "w") as file:
        json.dump(answer, file)


def _prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Return the command of the new start."""
    options = ServeOptions(**request["options"])
    ports = claim_ports(options.host, options.triton_ports, guard_pid=os.getppid())
    runtime, content = prepare(Path(request["repository"]), options, on_progress=_on_progress)
    assert options.admin_key is not None
    command = command_line(runtime, content, options, ports, options.admin_key)
    return {"command": command, "environment": dict(runtime.environment), "models": list(content.models)}


def _verify(request: dict[str, Any]) -> dict[str, Any]:
    """Verify the answers of the new server, and return which models are not served and why."""
    from ..readiness import await_ready

    options = ServeOptions(**request["options"])
    repository = read_content(Path(request["repository"]), options)
    content = Repository(
        repository.path, {name: model for name, model in repository.models.items() if name in request["models"]}, repository.problems
    )
    assert options.admin_key is not None
    log, timeout_s = Path(request["log"]), float(request["start_timeout_s"])
    _, problems = await_ready(request["pid"], content, options, options.admin_key, log, timeout_s, guard_pid=os.getppid())
    return {"problems": problems}


def _on_progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # into the log
