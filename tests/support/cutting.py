"""The process that edits, cut short at its n-th step: each case is a fork of one Python that has imported everything.

Reads a `Case` a line from its input, as JSON, and answers each with what its fork did. A step is a call of the file system that
changes something, as Python's own audit events tell before it happens, half of a file's content written, a flush to disk, or a call of the
network; of loading and unloading also its end. Where nothing lies between, being killed after a step is being killed before the next one.
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
from defensemble._transport.http_transport import HttpTransport
from defensemble.ensembles import Applied, EditFailedError, Ensembles, Replica, server_models
from defensemble_repository import transaction
from defensemble_repository.filesystem import atomic_write

_FILES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR
_fsync = os.fsync
_NETWORK = ("infer", "model_config", "repository_index", "load_model", "unload_model", "statistics")


class Steps:
    """Counts the steps of one of `kinds` ("files", "flushes", "network"), and lets `act` happen at the `at`-th.

    What `lasts`, as a full disk does, happens from then on at every step that needs room. `later` happens at steps after it.
    """

    def __init__(
        self,
        at: int,
        kinds: list[str],
        act: Callable[[str, str], None],
        told: int,
        *,
        lasts: bool,
        later: dict[int, Callable[[str, str], None]],
    ) -> None:
        self._at = at
        self._later = later
        self._lasts = lasts
        self._kinds = kinds
        self._act = act
        self._told = told
        self._lock = threading.Lock()
        self._count = 0
        self._last = ""

    def step(self, kind: str, what: str) -> None:
        if kind not in self._kinds:
            return
        with self._lock:
            # How often a server is asked in a row whether it is drained, or is back, depends on the time: once, here.
            if what == self._last and what in ("statistics", "repository_index"):
                return
            self._last = what
            self._count += 1
            number = self._count
            os.write(self._told, f"{json.dumps({'step': what})}\n".encode())
        if number == self._at or (self._lasts and number > self._at and not what.startswith(("os.rename", "os.remove", "os.rmdir"))):
            self._act(kind, what)
        elif number in self._later:
            self._later[number](kind, what)


_steps: Steps | None = None


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _steps is None:
        return
    if event in _FILES:
        _steps.step("files", f"{event} {arguments[0]}")
    elif event == "open" and isinstance(arguments[0], str | Path) and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        _steps.step("files", f"open {arguments[0]}")


def _fill_in_halves(file: BinaryIO, content: bytes) -> None:
    file.write(content[: len(content) // 2])
    file.flush()
    if _steps is not None:
        _steps.step("files", f"halve {_path_of(file.fileno())}")
    file.write(content[len(content) // 2 :])


def _counted_fsync(descriptor: int) -> None:
    if _steps is not None:
        _steps.step("flushes", f"os.fsync {_path_of(descriptor)}")
    _fsync(descriptor)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


class Counted:
    """A transport whose calls are steps; an answer of the server's may be made a lie."""

    def __init__(self, inner: HttpTransport, lie: str | None) -> None:
        self._inner = inner
        self._lie = lie

    @property
    def url(self) -> str:
        return self._inner.url

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._inner, name)
        if name not in _NETWORK:
            return function

        def called(*arguments: Any, **named: Any) -> Any:
            told = arguments[0] if arguments and isinstance(arguments[0], str) else ""
            assert _steps is not None
            _steps.step("network", f"{name} {told}".rstrip())
            answer = function(*arguments, **named)
            if name in ("load_model", "unload_model"):
                _steps.step("network", f"after {name} {told}")
            if name == "infer" and self._lie == told:
                answer = {output: np.float32(0.01) + values for output, values in answer.items()}
            return answer

        return called


def _acts(case: dict[str, Any], how: str) -> Callable[[str, str], None]:
    """What happens at the step."""

    def kill(kind: str, what: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def signal_server(number: int) -> None:
        guard = case["server"]
        for child in map(int, Path(f"/proc/{guard}/task/{guard}/children").read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since the list was read
                if Path(f"/proc/{child}/comm").read_text().strip() == "tritonserver":
                    os.kill(child, number)

    def kill_server(kind: str, what: str) -> None:
        signal_server(signal.SIGKILL)

    def restart_server(kind: str, what: str) -> None:
        """Kills it, and goes on when it answers again: the edit may not notice."""
        signal_server(signal.SIGKILL)
        (_, ((url, key),)) = case["places"][0]
        deadline = time.monotonic() + 30
        while True:
            try:
                HttpTransport(url, admin_key=key).repository_index(5)
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
        raise kinds[case["error"]](f"told to fail at {what}")

    def count(kind: str, what: str) -> None:
        """Nothing: the steps are counted."""

    acts = {
        "kill": kill,
        "kill_server": kill_server,
        "restart_server": restart_server,
        "stop_server": stop_server,
        "interrupt": interrupt,
        "fail": fail,
        "count": count,
    }
    return acts[how]


def _edit(case: dict[str, Any], told: int) -> None:
    """In the fork: the edit, and what came of it."""
    global _steps
    said: list[str] = []
    warned: list[str] = []
    outcome: dict[str, Any] = {"said": said, "warned": warned, "error": None}
    clients = [
        [Client(url, transport=Counted(HttpTransport(url, admin_key=key), case.get("lie"))) for url, key in servers]
        for _, servers in case["places"]
    ]
    replicas = [Replica(Path(folder), tuple(of)) for (folder, _), of in zip(case["places"], clients, strict=True)]
    ensembles = Ensembles.over(replicas, on_progress=said.append, on_warning=warned.append, wait_s=case.get("wait_s", 60.0), drain_s=5.0)
    later = {int(at): _acts(case, how) for at, how in case.get("later", {}).items()}
    _steps = Steps(case["at"], case["kinds"], _acts(case, case["how"]), told, lasts=case.get("lasts", False), later=later)
    try:
        applied = getattr(ensembles, case["verb"])(*case["arguments"], **case["named"])
        _steps = None
        edits = [one for one in (applied if isinstance(applied, (list, tuple)) else [applied]) if isinstance(one, Applied)]
        remarks = [remark for one in edits for remark in one.remarks]
        outcome |= {"remarks": remarks, "left_loaded": {name: why for one in edits for name, why in one.left_loaded.items()}}
    except BaseException as error:
        _steps = None
        outcome |= {"error": type(error).__name__, "text": str(error)}
        if isinstance(error, EditFailedError):
            outcome |= {"step": error.step, "why": error.why, "put_back": error.put_back}
    _steps = None
    os.write(told, f"{json.dumps({'outcome': outcome})}\n".encode())


def _one_case(case: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(60)
        status = 1
        try:
            _edit(case, writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        lines: list[dict[str, Any]] = [json.loads(line) for line in pipe]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = [line["outcome"] for line in lines if "outcome" in line]
    outcome = told[0] if told else {"said": [], "warned": [], "error": None}  # nothing where it was killed
    return {"status": status, "steps": [line["step"] for line in lines if "step" in line], **outcome}


def main() -> None:
    """Answer case after case, until the input ends."""
    sys.dont_write_bytecode = True
    server_models.RESTART_WAIT_S = 30.0  # where many tests run at once, a restart takes more than five seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for writer in (atomic_write, transaction):
        writer.fill = _fill_in_halves  # type: ignore[attr-defined]
    os.fsync = _counted_fsync  # type: ignore[assignment]
    importlib.import_module("defensemble_export.editing")  # once, and not in each fork
    np.random.default_rng(0)
    sys.addaudithook(_heard)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_one_case(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
