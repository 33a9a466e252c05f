"""The process that runs edits and injects a fault at the n-th step; each case is a fork of one Python that has imported everything.

It reads a case per line from its input, as JSON, and answers with the result of the fork. A step is a call that changes the file system (by
Python's audit events, which come before the call), half of a file's content written, a flush to disk, or a network call; for loads and
unloads also the end of the call. For other calls, a kill after a step equals a kill before the next one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from defensemble import Client
from defensemble._exceptions import ConnectionFailedError, ServerFailedError
from defensemble._transport.base import ConnectionOptions
from defensemble._transport.http_transport import HttpTransport
from defensemble.ensembles import Applied, EditFailedError, Ensembles, Replica, server_models
from defensemble_repository import transaction
from defensemble_repository.filesystem import atomic_write

_FILES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR
_fsync = os.fsync
_NETWORK = ("infer", "model_config", "repository_index", "load_model", "unload_model", "statistics")


class Steps:
    """Counts the steps of some `kinds` ("files", "flushes", "network"), and calls `act` at step `at`.

    With `lasts`, as for a full disk, `act` is also called at every later step that needs space. `later` has the actions of later steps.
    """

    def __init__(
        self,
        at: int,
        kinds: list[str],
        act: Callable[[str, str], None],
        pipe_fd: int,
        *,
        lasts: bool,
        later: dict[int, Callable[[str, str], None]],
    ) -> None:
        self._at = at
        self._later = later
        self._lasts = lasts
        self._kinds = kinds
        self._act = act
        self._pipe_fd = pipe_fd
        self._lock = threading.Lock()
        self._count = 0
        self._last = ""

    def step(self, kind: str, what: str) -> None:
        if kind not in self._kinds:
            return
        with self._lock:
            # The number of polls in a row depends on the time, so they count as one step.
            if what == self._last and what in ("statistics", "repository_index"):
                return
            self._last = what
            self._count += 1
            number = self._count
            os.write(self._pipe_fd, f"{json.dumps({'step': what})}\n".encode())
        if number == self._at or (self._lasts and number > self._at and not what.startswith(("os.rename", "os.remove", "os.rmdir"))):
            self._act(kind, what)
        elif number in self._later:
            self._later[number](kind, what)


_steps: Steps | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _steps is None:
        return
    if event in _FILES:
        _steps.step("files", f"{event} {arguments[0]}")
    elif event == "open" and isinstance(arguments[0], str | Path) and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        _steps.step("files", f"open {arguments[0]}")


def _write_in_halves(file: BinaryIO, content: bytes) -> None:
    file.write(content[: len(content) // 2])
    file.flush()
    if _steps is not None:
        _steps.step("files", f"halve {_path_of(file.fileno())}")
    file.write(content[len(content) // 2 :])


def _counting_fsync(descriptor: int) -> None:
    if _steps is not None:
        _steps.step("flushes", f"os.fsync {_path_of(descriptor)}")
    _fsync(descriptor)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


class CountingTransport:
    """A transport whose calls are steps; the outputs of one model can be falsified."""

    def __init__(self, inner: HttpTransport, wrong_output: str | None) -> None:
        self._inner = inner
        self._wrong_output = wrong_output

    @property
    def url(self) -> str:
        return self._inner.url

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._inner, name)
        if name not in _NETWORK:
            return function

        def called(*arguments: Any, **named: Any) -> Any:
            model = arguments[0] if arguments and isinstance(arguments[0], str) else ""
            assert _steps is not None
            _steps.step("network", f"{name} {model}".rstrip())
            answer = function(*arguments, **named)
            if name in ("load_model", "unload_model"):
                _steps.step("network", f"after {name} {model}")
            if name == "infer" and self._wrong_output == model:
                answer = {output: np.float32(0.01) + values for output, values in answer.items()}
            return answer

        return called


def _fault_function(case: dict[str, Any], fault: str) -> Callable[[str, str], None]:
    """Return the function that injects a fault."""

    def kill(kind: str, what: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def signal_server(number: int) -> None:
        guard = case["server"]
        for child in map(int, Path(f"/proc/{guard}/task/{guard}/children").read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended after the list was read
                if Path(f"/proc/{child}/comm").read_text().strip() == "tritonserver":
                    os.kill(child, number)

    def kill_server(kind: str, what: str) -> None:
        signal_server(signal.SIGKILL)

    def restart_server(kind: str, what: str) -> None:
        """Kill the server and continue when it answers again, so that the edit may not notice."""
        signal_server(signal.SIGKILL)
        (_, ((url, key),)) = case["targets"][0]
        deadline = time.monotonic() + 30
        while True:
            try:
                HttpTransport(url, ConnectionOptions(admin_key=key)).repository_index(5)
                return
            except ConnectionFailedError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def stop_server(kind: str, what: str) -> None:
        signal_server(signal.SIGSTOP)

    def interrupt(kind: str, what: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def fail(kind: str, what: str) -> None:
        if kind in ("files", "flushes"):
            raise OSError(getattr(errno, case["errno"]), os.strerror(getattr(errno, case["errno"])), what.partition(" ")[2])
        kinds = {"lost": ConnectionFailedError, "failed": ServerFailedError}
        raise kinds[case["error"]](f"injected fault at {what}")

    def count(kind: str, what: str) -> None:
        """Do nothing; the steps are only counted."""

    functions = {
        "kill": kill,
        "kill_server": kill_server,
        "restart_server": restart_server,
        "stop_server": stop_server,
        "interrupt": interrupt,
        "fail": fail,
        "count": count,
    }
    return functions[fault]


def _run_edit(case: dict[str, Any], pipe_fd: int) -> None:
    """Run the edit in the fork, and write its result to the pipe."""
    global _steps
    progress: list[str] = []
    warnings: list[str] = []
    outcome: dict[str, Any] = {"progress": progress, "warnings": warnings, "error": None}
    clients = [
        [
            Client(url, transport=CountingTransport(HttpTransport(url, ConnectionOptions(admin_key=key)), case.get("wrong_output")))
            for url, key in servers
        ]
        for _, servers in case["targets"]
    ]
    replicas = [Replica(Path(folder), tuple(of)) for (folder, _), of in zip(case["targets"], clients, strict=True)]
    ensembles = Ensembles.over(
        replicas, on_progress=progress.append, on_warning=warnings.append, wait_s=case.get("wait_s", 60.0), idle_timeout_s=5.0
    )
    later = {int(at): _fault_function(case, fault) for at, fault in case.get("later", {}).items()}
    _steps = Steps(case["at"], case["kinds"], _fault_function(case, case["fault"]), pipe_fd, lasts=case.get("lasts", False), later=later)
    try:
        applied = getattr(ensembles, case["verb"])(*case["arguments"], **case["named"])
        _steps = None
        results = [item for item in (applied if isinstance(applied, (list, tuple)) else [applied]) if isinstance(item, Applied)]
        remarks = [remark for item in results for remark in item.remarks]
        outcome |= {"remarks": remarks, "left_loaded": {name: why for item in results for name, why in item.left_loaded.items()}}
    except BaseException as error:
        _steps = None
        outcome |= {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, EditFailedError):
            outcome |= {"step": error.step, "why": error.reason, "put_back": error.restore_report}
    _steps = None
    os.write(pipe_fd, f"{json.dumps({'outcome': outcome})}\n".encode())


def _run_case(case: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(60)
        status = 1
        try:
            _run_edit(case, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines: list[dict[str, Any]] = [json.loads(line) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    outcomes = [line["outcome"] for line in lines if "outcome" in line]
    outcome = outcomes[0] if outcomes else {"progress": [], "warnings": [], "error": None}  # nothing if it was killed
    return {"status": status, "steps": [line["step"] for line in lines if "step" in line], **outcome}


def main() -> None:
    """Run one case per line until the input ends."""
    sys.dont_write_bytecode = True
    server_models.RESTART_WAIT_S = 30.0  # with many tests in parallel, a restart takes more than five seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for writer in (atomic_write, transaction):
        writer.fill = _write_in_halves  # type: ignore[attr-defined]
    os.fsync = _counting_fsync  # type: ignore[assignment]
    importlib.import_module("defensemble_export.editing")  # once, not in each fork
    np.random.default_rng(0)
    sys.addaudithook(_audit)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run_case(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
