"""The guard process: runs Triton until its parent ends or asks it to stop, and restarts Triton when it dies or hangs.

Runs with only the standard library. Standard input is a pipe that only the parent holds. Its first line is JSON: `command` and
`environment` of the server, `log` (a file), `state` (a file to remove at the end), `stop_signal` (asks the server to drain and end) and
`grace_s` (seconds for that). Further lines are:

- `ready JSON`: the parent has verified the answers. From now on a server that dies or hangs is restarted, if `restart` is true, and events
  are written to the file `events`. `child` is the command that runs `restart.py`, `request` is its input, `http` and `grpc` are the
  addresses to connect to, `timeout_s` is the time for a start, `supervisor` is the command and the request of the supervisor
  (`supervisor/main.py`), or null.
- `detach`: the server keeps running after the parent ends. At end of file without it, the parent has ended or died
  (PR_SET_PDEATHSIG would be sent when the *thread* that forked ends).

SIGTERM asks the guard to stop, SIGINT to stop without draining. Output: `started PID`, `event` per line in `events`, `exited STATUS`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from typing import Any

from .child import Child, die_with_parent
from .liveness import Check, is_stopped
from .log_files import LINES_SHOWN, RUN, appended, last_lines, rotate, write_line
from .records import append_event, read_line, remove_state
from .supervision import Supervision

# Seconds to wait before consecutive failed restarts; after the last one the guard gives up.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
CHECK_EVERY_S = 2.0
CHECK_AGAIN_S = 1.0
HUNG_AFTER = 3
# A server that was stopped (SIGSTOP) for so long is killed and restarted.
FROZEN_S = 0.2
LOG_EVERY_S = 10.0
_POLL_S = 0.02
# Triton prints this when asked to stop; if the drain then takes too long, its exit status is 1.
_STOP_MESSAGES = ("Signal (2) received.", "Signal (15) received.")
_LINES_READ = 1000


def main() -> int:
    """Run the server until it ends without a restart or is asked to stop, and return the exit status."""
    guard = _Guard()
    try:
        guard.run()
    finally:
        status = guard.end()
    return 0 if status == 0 else 1


def _was_asked_to_stop(lines: list[str]) -> bool:
    return any(line in _STOP_MESSAGES for line in lines)


class _Guard:
    def __init__(self) -> None:
        self._stopping = self._skip_drain = False
        self._wake, writer = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(writer, False)
        os.set_blocking(1, False)  # a parent that does not read must not block us
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._order)
        signal.signal(signal.SIGINT, self._order)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        settings = json.loads(read_line(0))
        self._log: str = settings["log"]
        self._state: str = settings["state"]
        self._grace_s: float = settings["grace_s"]
        self._stop_signal: int = settings["stop_signal"]
        self._watched = [0, self._wake]
        self._ready: dict[str, Any] | None = None  # the settings that the parent sent with `ready`
        self._started = 0.0
        self._ended: int | None = None  # the exit status, once the server has ended without a restart
        self._ordered = False  # whether it ended because it was asked to
        self._child: Child | None = None
        self._check: Check | None = None
        self._check_at = self._log_at = 0.0
        self._seen_alive = False
        self._unanswered = 0
        self._stopped_since: float | None = None
        self._killed: tuple[str, dict[str, Any]] | None = None  # why the guard killed the server: an event and its facts
        self._supervision = Supervision(None, self._log, self._supervisor_ended)
        self._deaths = 0  # consecutive, without a verified answer in between
        self._down_since: float | None = None
        self._detected_at = 0.0
        self._restart_at: float | None = None
        server = self._spawn(settings["command"], settings["environment"])
        self._server: subprocess.Popen[bytes] | None = server
        write_line(1, f"started {server.pid}")

    def run(self) -> None:
        """Run until the server has ended without a restart, or the guard is asked to stop."""
        while self._ended is None and not self._stopping:
            ready, _, _ = select.select([*self._watched, *self._supervision.descriptors], [], [], self._wait_s())
            if self._wake in ready:
                os.read(self._wake, 4096)
            if 0 in ready:
                self._handle_order(read_line(0))
            if not self._stopping:
                self._step()

    def end(self) -> int:
        """Stop what is still running, clean up, and return the server's exit status."""
        self._supervision.report("ends")
        self._supervision.notify("STOPPING=1")
        if self._child is not None:
            self._child.kill()
        server = self._server
        if server is not None and server.poll() is None:
            server.send_signal(self._stop_signal)
            deadline = time.monotonic() + self._grace_s
            while server.poll() is None and time.monotonic() < deadline and not self._skip_drain:
                time.sleep(0.005)
            if server.poll() is None:
                server.kill()
                server.wait()
        if self._ended is None:
            self._ordered = True
            # Before the backend is loaded, the signal has no handler and kills the server.
            self._ended = 0 if server is None or server.returncode == -self._stop_signal else server.returncode
        if self._ready is not None:
            self._event("ended", ordered=self._ordered, status=self._ended)
        self._supervision.stop()
        remove_state(self._state)
        write_line(1, f"exited {self._ended}")
        return self._ended

    def _order(self, number: int, _: object) -> None:
        self._stopping = True
        self._skip_drain = self._skip_drain or number == signal.SIGINT

    def _handle_order(self, line: str) -> None:
        if line == "detach":
            self._watched.remove(0)
        elif line.startswith("ready "):
            self._ready = json.loads(line.removeprefix("ready "))
            assert self._server is not None
            self._event("started", pid=self._server.pid, **self._ready["about"])
            self._supervision = Supervision(self._ready["supervisor"], self._log, self._supervisor_ended)
            self._supervision.report("serving", pid=self._server.pid, problems=self._ready["about"]["problems"])
            self._seen_alive = True
            self._check_at = time.monotonic() + CHECK_EVERY_S
        else:
            self._stopping = True

    def _wait_s(self) -> float:
        """Return the seconds until the next periodic action."""
        if self._check is not None:
            return _POLL_S
        due = [self._log_at]
        due += [self._restart_at] if self._restart_at is not None else []
        due += [self._check_at] if self._checks else []
        due += [self._stopped_since + FROZEN_S] if self._stopped_since is not None else []
        due += self._supervision.due
        return max(0.0, min(due) - time.monotonic())

    @property
    def _checks(self) -> bool:
        return self._ready is not None and bool(self._ready["restart"]) and self._server is not None

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            rotate(self._log)
        self._handle_supervisor()
        # Without a supervisor and without checks of its own, the guard is at work if it gets here, which it does every `LOG_EVERY_S`.
        if self._down_since is not None or not (self._supervision.checks or self._checks):
            self._supervision.notify_progress()
        if self._server is not None and self._server.poll() is not None:
            self._died(self._server)
        elif self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            self._prepare()
        elif self._child is not None and (answer := self._child.answer()) is not None:
            child, self._child = self._child, None
            self._restart(answer) if child.prepares else self._verified(answer)
        elif self._checks:
            self._check_that_it_runs(now)
            self._check_that_it_answers(now)

    def _handle_supervisor(self) -> None:
        for request in self._supervision.step():
            if request["do"] == "event":
                self._event(request["kind"], **request["facts"])
            elif request["do"] == "restart" and self._checks and self._down_since is None:
                self._kill(request["kind"], **request["facts"])

    def _supervisor_ended(self, status: int) -> None:
        self._event("supervisor_ended", status=status)

    def _kill(self, kind: str, **facts: Any) -> None:
        """Kill the server, so that it is restarted; `kind` and `facts` are the event."""
        assert self._server is not None
        self._killed = (kind, facts)
        self._server.kill()  # SIGCHLD follows

    def _check_that_it_runs(self, now: float) -> None:
        """Kill a server that was stopped for `FROZEN_S`. SIGCHLD wakes the guard when that begins."""
        assert self._server is not None
        if not is_stopped(self._server.pid):
            self._stopped_since = None
        elif self._stopped_since is None:
            self._stopped_since = now
        elif now >= self._stopped_since + FROZEN_S and self._killed is None:
            self._kill("hung", cause="it was stopped by a signal", detected_at=round(time.time() - now + self._stopped_since, 3))

    def _check_that_it_answers(self, now: float) -> None:
        """Kill a server that hangs. A busy server still accepts connections, and its gRPC front end sends the first bytes on each."""
        assert self._ready is not None
        if self._check is None:
            if now < self._check_at:
                return
            self._check = Check(self._ready["http"], b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self._check.step()
        if self._check.answered is None:
            return
        check, self._check = self._check, None
        self._check_at = now + CHECK_EVERY_S
        if check.answered:
            self._seen_alive, self._unanswered = True, 0
            if not self._supervision.checks:
                self._supervision.notify_progress()
        elif self._seen_alive:  # it only listens after its models are loaded
            self._unanswered += 1
            self._check_at = check.begin + CHECK_AGAIN_S
            if self._unanswered == HUNG_AFTER:
                self._check = Check(self._ready["grpc"])
            elif self._unanswered > HUNG_AFTER:
                self._unanswered = 0
                if not _was_asked_to_stop(last_lines(self._log, _LINES_READ)):  # a drain refuses connections, and ends by itself
                    self._kill("hung", cause="it accepts no connections")

    def _died(self, server: subprocess.Popen[bytes]) -> None:
        """Handle the end of the server: end too if it was asked to stop, else restart it."""
        status, killed = server.returncode, self._killed
        self._server = self._check = self._killed = self._stopped_since = None
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._ready is None:
            self._ended = status
            return
        lines = last_lines(self._log, _LINES_READ)
        was_asked = status in (0, -signal.SIGTERM, -signal.SIGINT) or _was_asked_to_stop(lines)
        if was_asked and killed is None:
            self._ordered, self._ended = True, max(0, status)  # 1 if the drain did not finish
            return
        uptime_s = round(time.monotonic() - self._started, 3)
        kind, facts = killed or ("died", {})
        self._record_outage(kind, status, **facts, pid=server.pid, uptime_s=uptime_s, status=status, last_lines=lines[-LINES_SHOWN:])

    def _record_outage(self, kind: str, end_status: int, **facts: Any) -> None:
        """Record why the server is down, and schedule a restart, or end with `end_status`."""
        assert self._ready is not None
        if self._down_since is None:
            self._down_since = time.monotonic()
            self._detected_at = facts.setdefault("detected_at", round(time.time(), 3))
        self._supervision.report("down", kind=kind)
        wait_s = BACKOFF_S[self._deaths] if self._ready["restart"] and self._deaths < len(BACKOFF_S) else None
        self._deaths += 1
        self._event(kind, **facts, restart_in_s=wait_s)
        if wait_s is None:
            self._ended = 1 if self._ready["restart"] else end_status
        else:
            self._restart_at = time.monotonic() + wait_s

    def _prepare(self) -> None:
        assert self._ready is not None
        rotate(self._log)
        try:
            self._child = self._run({"do": "plan"})
        except OSError as error:
            self._record_outage("not_restarted", 1, error=str(error))

    def _restart(self, start: dict[str, Any]) -> None:
        if "error" in start:
            self._record_outage("not_restarted", 1, error=start["error"])
            return
        try:
            self._server = self._spawn(start["command"], start["environment"])
            self._child = self._run({"do": "verify", "models": start["models"], "pid": self._server.pid, "log": self._log})
        except OSError as error:
            self._abandon_start(str(error))
            return
        self._seen_alive, self._unanswered = False, 0
        self._check_at = time.monotonic() + CHECK_EVERY_S

    def _verified(self, verdict: dict[str, Any]) -> None:
        if "error" in verdict:
            self._abandon_start(verdict["error"])
            return
        assert self._server is not None
        assert self._down_since is not None
        outage_s = round(time.monotonic() - self._down_since, 3)
        self._deaths, self._down_since, self._seen_alive = 0, None, True
        problems, times = verdict["problems"], {"detected_at": self._detected_at, "recovered_at": round(time.time(), 3)}
        self._event("restarted", pid=self._server.pid, outage_s=outage_s, problems=problems, **times)
        self._supervision.report("serving", pid=self._server.pid, problems=problems)

    def _abandon_start(self, error: str) -> None:
        """Kill a server that does not answer correctly after its start, and count it as dead."""
        lines = last_lines(self._log)
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = self._check = None
        self._record_outage("not_restarted", 1, error=error, last_lines=lines)

    def _run(self, what: dict[str, Any]) -> Child:
        assert self._ready is not None
        with appended(self._log) as log:
            return Child(self._ready["child"], {**self._ready["request"], **what}, log=log, timeout_s=self._ready["timeout_s"] + 10.0)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        rotate(self._log)
        with appended(self._log) as log:
            write_line(log.fileno(), f"{RUN}{time.strftime('%Y-%m-%d %H:%M:%S %z')}")
            # This process has one thread, so the signal does mean that it died.
            server = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            )
        self._started = time.monotonic()
        return server

    def _event(self, kind: str, **facts: Any) -> None:
        assert self._ready is not None
        append_event(self._ready["events"], kind, facts)
        write_line(1, "event")
