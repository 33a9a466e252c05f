"""The guard process: runs Triton until its parent ends or asks it to stop, and restarts Triton when it dies or hangs.

Runs as a script with only the standard library. Standard input is a pipe that only the parent holds. Its first line is JSON: `command` and
`environment` of the server, `log` (a file), `state` (a file to remove at the end), `stop_signal` (asks the server to drain and end) and
`grace_s` (seconds for that). Further lines are:

- `ready JSON`: the parent has verified the answers. From now on a server that dies or hangs is restarted, if `restart` is true, and events
  are written to the file `events`. `child` is the command that runs `restart.py`, `request` is its input, `http` and `grpc` are the
  addresses to connect to, `timeout_s` is the time for a start.
- `detach`: the server keeps running after the parent ends. At end of file without it, the parent has ended or died
  (PR_SET_PDEATHSIG would be sent when the *thread* that forked ends).

SIGTERM asks the guard to stop, SIGINT to stop without draining. Output: `started PID`, `event` per line in `events`, `exited STATUS`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1
# Seconds to wait before consecutive failed restarts; after the last one the guard gives up.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
CHECK_EVERY_S = 2.0
CHECK_AGAIN_S = 1.0
ANSWER_WITHIN_S = 2.0
HUNG_AFTER = 3
LOG_EVERY_S = 10.0
LOG_BYTES = 5_000_000
LOGS_KEPT = 3
EVENTS_BYTES = 500_000
LINES_SHOWN = 15
_POLL_S = 0.02
_TAIL_BYTES = 65_536
_LINE_LENGTH = 500
_RUN = "=== Triton is started: "
# Triton prints this when asked to stop; if the drain then takes too long, its exit status is 1.
_STOP_MESSAGES = ("Signal (2) received.", "Signal (15) received.")


def main() -> int:
    """Run the server until it ends without a restart or is asked to stop, and return the exit status."""
    guard = _Guard()
    try:
        guard.run()
    finally:
        status = guard.end()
    return 0 if status == 0 else 1


def last_lines(log: str, count: int = LINES_SHOWN) -> list[str]:
    """Return the last lines that the latest run wrote to a log."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:  # an unreadable log must not stop the server
        return []
    lines = text.rpartition(_RUN)[2].splitlines()
    return [line[:_LINE_LENGTH] for line in (lines[1:] if _RUN in text else lines)[-count:]]


def rotate(log: str) -> None:
    """Rotate a log at `LOG_BYTES`, keeping `LOGS_KEPT` older files.

    Triton keeps the file open and would continue to write to a renamed file, so the content is copied and the file truncated. Output
    between the two is lost.
    """
    try:
        if os.stat(log).st_size <= LOG_BYTES:
            return
    except OSError:
        return
    with contextlib.suppress(OSError):  # on a full disk, the content is dropped
        for number in range(LOGS_KEPT - 1, 0, -1):
            if os.path.exists(f"{log}.{number}"):
                os.replace(f"{log}.{number}", f"{log}.{number + 1}")
        shutil.copyfile(log, f"{log}.1")
    with contextlib.suppress(OSError):
        os.truncate(log, 0)


class _Check:
    """A non-blocking connection on which the server, not only the kernel, must send something within `ANSWER_WITHIN_S`."""

    def __init__(self, address: list[Any], request: bytes = b"") -> None:
        self.begin = time.monotonic()
        self.deadline = self.begin + ANSWER_WITHIN_S
        self.answered: bool | None = None
        self._request = request
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.socket.setblocking(False)
        if self.socket.connect_ex(tuple(address)) not in (0, errno.EINPROGRESS):
            self._end(False)

    def step(self) -> None:
        if self.answered is not None:
            return
        try:
            if self._request:
                self._request = self._request[self.socket.send(self._request) :]
            self._end(bool(self.socket.recv(64)))
        except BlockingIOError:
            if time.monotonic() >= self.deadline:
                self._end(False)
        except OSError:  # refused or reset
            self._end(False)

    def _end(self, answered: bool) -> None:
        self.answered = answered
        self.socket.close()


class _Child:
    """A short-lived process that reads and writes JSON, through files in memory, so that writing never blocks."""

    def __init__(self, command: list[str], request: dict[str, Any], *, log: Any, timeout_s: float) -> None:
        self.deadline = time.monotonic() + timeout_s
        self.prepares = request["do"] == "plan"
        self._does = "reads the repository" if self.prepares else "checks the answers"
        self._answer = os.fdopen(os.memfd_create("answer"), "rb")
        with os.fdopen(os.memfd_create("request"), "wb+") as standard_input:
            standard_input.write(json.dumps(request).encode())
            standard_input.seek(0)
            self.process = subprocess.Popen(
                command, stdin=standard_input, stdout=self._answer, stderr=log, preexec_fn=lambda: _die_with_parent(signal.SIGKILL)
            )

    def answer(self) -> dict[str, Any] | None:
        """Return its answer, an `error` if it gave none, or None while it runs."""
        if self.process.poll() is None:
            if time.monotonic() < self.deadline:
                return None
            self.kill()
            return {"error": f"the process that {self._does} took too long"}
        self._answer.seek(0)
        try:
            answer = json.loads(self._answer.read())
        except ValueError:
            return {"error": f"the process that {self._does} ended with status {self.process.returncode}; see the log"}
        assert isinstance(answer, dict)
        return answer

    def kill(self) -> None:
        """Kill the process if it is running."""
        self.process.kill()
        self.process.wait()


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
        settings = json.loads(_line(0))
        self._log: str = settings["log"]
        self._state: str = settings["state"]
        self._grace_s: float = settings["grace_s"]
        self._stop_signal: int = settings["stop_signal"]
        self._watched = [0, self._wake]
        self._ready: dict[str, Any] | None = None  # the settings that the parent sent with `ready`
        self._started = 0.0
        self._ended: int | None = None  # the exit status, once the server has ended without a restart
        self._ordered = False  # whether it ended because it was asked to
        self._child: _Child | None = None
        self._check: _Check | None = None
        self._check_at = self._log_at = 0.0
        self._seen_alive = self._hung = False
        self._unanswered = 0
        self._deaths = 0  # consecutive, without a verified answer in between
        self._down_since: float | None = None
        self._restart_at: float | None = None
        server = self._spawn(settings["command"], settings["environment"])
        self._server: subprocess.Popen[bytes] | None = server
        _write(1, f"started {server.pid}")

    def run(self) -> None:
        """Run until the server has ended without a restart, or the guard is asked to stop."""
        while self._ended is None and not self._stopping:
            ready, _, _ = select.select(self._watched, [], [], self._wait_s())
            if self._wake in ready:
                os.read(self._wake, 4096)
            if 0 in ready:
                self._handle_order(_line(0))
            if not self._stopping:
                self._step()

    def end(self) -> int:
        """Stop what is still running, clean up, and return the server's exit status."""
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
        _remove_state(self._state)
        _write(1, f"exited {self._ended}")
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
        return max(0.0, min(due) - time.monotonic())

    @property
    def _checks(self) -> bool:
        return self._ready is not None and bool(self._ready["restart"]) and self._server is not None

    def _step(self) -> None:
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_EVERY_S
            rotate(self._log)
        if self._server is not None and self._server.poll() is not None:
            self._died(self._server)
        elif self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            self._prepare()
        elif self._child is not None and (answer := self._child.answer()) is not None:
            child, self._child = self._child, None
            self._restart(answer) if child.prepares else self._verified(answer)
        elif self._checks:
            self._check_that_it_answers(now)

    def _check_that_it_answers(self, now: float) -> None:
        """Kill a server that hangs. A busy server still accepts connections, and its gRPC front end sends the first bytes on each."""
        assert self._ready is not None
        if self._check is None:
            if now < self._check_at:
                return
            self._check = _Check(self._ready["http"], b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self._check.step()
        if self._check.answered is None:
            return
        check, self._check = self._check, None
        self._check_at = now + CHECK_EVERY_S
        if check.answered:
            self._seen_alive, self._unanswered = True, 0
        elif self._seen_alive:  # it only listens after its models are loaded
            self._unanswered += 1
            self._check_at = check.begin + CHECK_AGAIN_S
            if self._unanswered == HUNG_AFTER:
                self._check = _Check(self._ready["grpc"])
            elif self._unanswered > HUNG_AFTER:
                assert self._server is not None
                self._hung = True
                self._server.kill()  # SIGCHLD follows
                self._unanswered = 0

    def _died(self, server: subprocess.Popen[bytes]) -> None:
        """Handle the end of the server: end too if it was asked to stop, else restart it."""
        status, hung = server.returncode, self._hung
        self._server = self._check = None
        self._hung = False
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._ready is None:
            self._ended = status
            return
        lines = last_lines(self._log, 1000)
        was_asked = status in (0, -signal.SIGTERM, -signal.SIGINT) or any(line in _STOP_MESSAGES for line in lines)
        if was_asked and not hung:
            self._ordered, self._ended = True, max(0, status)  # 1 if the drain did not finish
            return
        uptime_s = round(time.monotonic() - self._started, 3)
        self._record_outage(
            "hung" if hung else "died", status, pid=server.pid, uptime_s=uptime_s, status=status, last_lines=lines[-LINES_SHOWN:]
        )

    def _record_outage(self, kind: str, end_status: int, **facts: Any) -> None:
        """Record why the server is down, and schedule a restart, or end with `end_status`."""
        assert self._ready is not None
        if self._down_since is None:
            self._down_since = time.monotonic()
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
        self._event("restarted", pid=self._server.pid, outage_s=outage_s, problems=verdict["problems"])

    def _abandon_start(self, error: str) -> None:
        """Kill a server that does not answer correctly after its start, and count it as dead."""
        lines = last_lines(self._log)
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = self._check = None
        self._record_outage("not_restarted", 1, error=error, last_lines=lines)

    def _run(self, what: dict[str, Any]) -> _Child:
        assert self._ready is not None
        with _appended(self._log) as log:
            return _Child(self._ready["child"], {**self._ready["request"], **what}, log=log, timeout_s=self._ready["timeout_s"] + 10.0)

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        rotate(self._log)
        with _appended(self._log) as log:
            _write(log.fileno(), f"{_RUN}{time.strftime('%Y-%m-%d %H:%M:%S %z')}")
            # This process has one thread, so the signal does mean that it died.
            server = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: _die_with_parent(signal.SIGTERM),
            )
        self._started = time.monotonic()
        return server

    def _event(self, kind: str, **facts: Any) -> None:
        assert self._ready is not None
        path = self._ready["events"]
        event = {"time": round(time.time(), 3), "event": kind, "guard": os.getpid(), **facts}
        try:
            if os.path.exists(path) and os.stat(path).st_size > EVENTS_BYTES:
                os.replace(path, f"{path}.1")
            with _appended(path) as file:
                file.write(json.dumps(event).encode() + b"\n")
        except OSError as error:
            _write(2, f"{error}: could not record the event {kind}")
        _write(1, "event")


_LIBC = ctypes.CDLL(None)


def _die_with_parent(number: int) -> None:
    _LIBC.prctl(PR_SET_PDEATHSIG, number)


def _appended(path: str) -> BinaryIO:
    """Open a file for appending, and create it and its folder if they were deleted."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o600))  # a FIFO is an error


def _remove_state(state: str) -> None:
    """Remove our state file, but not that of another server on the same port."""
    try:
        with open(state) as file:
            ours = json.load(file)["pid"] == os.getpid()
    except (OSError, ValueError, KeyError, TypeError):
        return  # missing, or not our format
    if ours:
        os.unlink(state)


def _line(descriptor: int) -> str:
    """Read one line, byte by byte, so that nothing after it is consumed. Return an empty string at end of file."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            return ""
        line += byte
    return line.decode().rstrip("\n")


def _write(descriptor: int, text: str) -> None:
    """Write a line, if that is possible: neither a full disk nor a parent that is gone or does not read may end the server."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
