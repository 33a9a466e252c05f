"""The process of the supervisor.

Its first line of input is JSON: the repository, the options, and the descriptor of the file for the correct answers, which the guard keeps
for the next supervisor. Further lines from the guard state what the server does: `{"state": "serving"}`,
`{"state": "down"}` or `{"state": "ends"}`. Its output are lines of JSON for the guard: `alive` at least once a second, `event` to record,
and `restart`. It ends with its input.
"""

from __future__ import annotations

import json
import math
import os
import select
import time
from pathlib import Path
from typing import Any, BinaryIO

from defensemble_repository.errors import RepositoryError

from ..errors import ServerError
from ..options import ServeOptions
from ..process.events import server_events, server_status
from ..process.guard_process.records import read_line
from ..process.state import ServerState, connect_host, read_states
from .checks import Checks
from .connection import FAILURES, Connection
from .endpoint import Answer, Endpoint
from .records import SCHEMA, Outages, metrics_text, readiness_problems
from .targets import Targets
from .treatment import Treatment

# Rounds follow each other faster while they decide on a failure or on a repair.
_URGENT_INTERVAL_S = 0.2
# An ensemble that has not answered for 3 intervals, but at least so long, is not ready.
_READY_WITHIN_S = 3.0
_REPORT_EVERY_S = 1.0
_STEP_S = 0.25
# Without a step for so long, the supervisor itself is not healthy.
_STUCK_S = 10.0
_EVENTS_SHOWN = 50
_STATUS_EVERY_S = 1.0


def main() -> None:
    """Run the supervisor until its input ends."""
    request = json.loads(read_line(0))
    reports = os.dup(1)
    os.dup2(2, 1)  # other output must not get into the reports
    with os.fdopen(request["references"], "r+b", buffering=0) as references:
        Supervisor(Path(request["repository"]), ServeOptions(**request["options"]), reports, references).run()


class Supervisor:
    """The supervisor of one server.

    Args:
        repository: The repository.
        options: The options of the server, with its real ports.
        reports: Descriptor of the pipe to the guard.
        references: The file for the correct answers.

    Example:
        >>> Supervisor(Path("model_repository"), options, 1, references).run()
    """

    def __init__(self, repository: Path, options: ServeOptions, reports: int, references: BinaryIO) -> None:
        assert options.admin_key is not None
        self._options, self._reports = options, reports
        host, port, key = connect_host(options.host), options.http_port, options.admin_key
        self._targets = Targets(repository, options, references)
        self._checks = Checks(self._targets, lambda: Connection(host, port, key), options.hang_after_s)
        restarts = options.restart and options.runtime != "docker"
        self._treatment = Treatment(repository, self._targets, restarts, self._send_event, self._send_restart)
        self._outages = Outages()
        self._problems: dict[str, str] = {}
        self._reasons = ["the supervisor has just started"]
        self._round_at = self._report_at = 0.0
        self._looped_at = time.monotonic()
        self._error = ""
        self._state: ServerState | None = None
        self._status: tuple[float, str] = (0.0, "")
        self._input = b""
        self._endpoint = Endpoint(options.host, options.supervisor_port, self._answer)

    def run(self) -> None:
        """Check, repair and report until the guard closes the input."""
        os.set_blocking(0, False)
        try:
            while True:
                timeout_s = max(0.0, min(self._round_at, self._report_at) - time.monotonic())
                descriptors: list[Any] = [0, *self._checks.descriptors]
                ready = select.select(descriptors, [], [], min(_STEP_S, timeout_s))[0]
                if 0 in ready and not self._read_input():
                    return
                self._step()
        finally:
            self._treatment.stop()
            self._endpoint.close()

    def _step(self) -> None:
        now = time.monotonic()
        if self._outages.kind is None:
            self._checks.receive()
            if now >= self._round_at:
                self._round()
                is_urgent = self._treatment.is_urgent(self._checks.records)
                self._round_at = now + min(self._options.check_interval_s, _URGENT_INTERVAL_S if is_urgent else math.inf)
            if hanging := self._checks.hanging():
                self._treatment.hang(hanging)
            self._treatment.step(self._checks.records)
        within_s = max(3 * self._options.check_interval_s, _READY_WITHIN_S)
        problems = {**self._targets.problems, **self._problems}
        reasons = readiness_problems(self._checks.records, self._targets.ensembles, problems, self._outages.kind, within_s)
        self._reasons = [*reasons, *([self._error] if self._error else [])]
        self._looped_at = time.monotonic()
        if self._looped_at >= self._report_at:
            self._report_at = self._looped_at + _REPORT_EVERY_S
            failing = [label for label, record in self._checks.records.items() if record.failure is not None]
            ok = self._outages.kind is None and (not failing or self._treatment.is_repairing)
            self._send({"do": "alive", "ok": ok, "status": "; ".join(self._reasons).replace("\n", " ") or "serving"})

    def _round(self) -> None:
        try:
            self._checks.run()
            self._error = ""
            self._treatment.prepare()
        except FAILURES as error:
            self._error = f"the server does not answer: {error}"
        except (ServerError, RepositoryError) as error:
            self._error = f"the repository cannot be read: {error}"

    def _read_input(self) -> bool:
        """Handle what the guard sent; return whether the input is still open."""
        received = os.read(0, 65_536)
        *lines, self._input = (self._input + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["state"] == "serving":
                self._outages.end()
                self._problems = message["problems"]
                self._round_at = 0.0
            else:
                self._outages.begin(message.get("kind", "stopping"))
                self._checks.forget()
                self._treatment.forget()
        return bool(received)

    def _send_event(self, kind: str, facts: dict[str, Any]) -> None:
        self._send({"do": "event", "kind": kind, "facts": facts})

    def _send_restart(self, kind: str, facts: dict[str, Any]) -> None:
        self._send({"do": "restart", "kind": kind, "facts": facts})

    def _send(self, message: dict[str, Any]) -> None:
        os.write(self._reports, json.dumps(message).encode() + b"\n")

    def _answer(self, path: str) -> Answer | None:
        """Answer a request of the endpoint, from another thread."""
        stuck_s = time.monotonic() - self._looped_at
        if path == "/healthz":
            is_healthy = stuck_s < _STUCK_S
            return _json(200 if is_healthy else 503, {"healthy": is_healthy, "last_step_s": round(stuck_s, 3)})
        reasons = self._reasons if stuck_s < _STUCK_S else [f"the supervisor has made no step for {stuck_s:.1f} s"]
        if path == "/readyz":
            return _json(503 if reasons else 200, {"ready": not reasons, "reasons": reasons})
        records = dict(self._checks.records)
        if path == "/metrics":
            interval_s = self._options.check_interval_s
            text = metrics_text(records, self._outages, self._treatment.repairs, not reasons, interval_s, time.time() - stuck_s)
            return Answer(200, text, "text/plain; version=0.0.4; charset=utf-8")
        if path == "/status":
            values = {
                "schema": SCHEMA,
                "ready": not reasons,
                "reasons": reasons,
                "interval_s": self._options.check_interval_s,
                "hang_after_s": self._options.hang_after_s,
                "repairing": self._treatment.is_repairing,
                "models": [record.values() for record in records.values()],
            }
            return _json(200, values | self._server())
        return None

    def _server(self) -> dict[str, Any]:
        """Return the server and its latest events, read from the file of events at most once a second."""
        if time.monotonic() >= self._status[0]:
            if self._state is None:
                self._state = next((state for state in read_states() if state.grpc_port == self._options.grpc_port), None)
            values: dict[str, Any] = {"server": None, "events": []}
            if self._state is not None:
                status = server_status(self._state)
                values["server"] = {
                    **self._state.about,
                    "triton_pid": status.pid,
                    "restarts": status.restarts,
                    "uptime_s": round(status.uptime_s, 3),
                    "restarting_since": status.restarting_since,
                }
                values["events"] = [
                    {"time": event.time, "event": event.kind, "text": event.text} for event in server_events(self._state)[-_EVENTS_SHOWN:]
                ]
            self._status = time.monotonic() + _STATUS_EVERY_S, json.dumps(values)
        server: dict[str, Any] = json.loads(self._status[1])
        return server


def _json(status: int, values: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(values) + "\n")
