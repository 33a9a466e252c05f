"""Start a contender as its users do, call it, measure its memory, and end all of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.forms import Form, check_answers
from benchmarks.common.processes import descendants, process_start_s, pss_bytes
from benchmarks.common.raw_calls import Sockets, predict_with_stub
from benchmarks.common.servers import ENSEMBLE, free_port
from benchmarks.peering.catalogue import FUSED, Contender, Launch
from defensemble_export import ExportedMember

ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_POLL_S = 0.02
_SETTLE_S = 2.0  # from the first answer, more workers start; Ray's proxy closes all connections when it hears of them
_SHOWN_BYTES = 4000
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class ContenderError(Exception):
    """A server did not start, or ended by itself."""


class ServerProcesses:
    """A server and all processes that it has started."""

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self._log = folder / "log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment = {**inherited, **_ONE_THREAD, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **variables}
        with self._log.open("wb") as log:
            # The kernel ends the server with this process, also if this is killed.
            self._root = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._known: dict[int, float] = {}  # the start of each process: a number may be reused

    @property
    def running(self) -> bool:
        """Whether the first process is alive."""
        return self._root.poll() is None

    @property
    def log_end(self) -> str:
        """The end of what the server has printed."""
        return self._log.read_bytes()[-_SHOWN_BYTES:].decode(errors="replace")

    def find(self) -> list[int]:
        """Return all living processes of the server."""
        living = [pid for pid, started in self._known.items() if process_start_s(pid) == started]
        if self.running:  # else its number may be that of another process
            living.append(self._root.pid)
        started_at = {pid: process_start_s(pid) for pid in descendants(*living)}
        self._known = {pid: started for pid, started in started_at.items() if started is not None}
        return list(self._known)

    def memory_bytes(self) -> int:
        """Return the PSS of all processes."""
        total = 0
        for pid in self.find():
            try:
                total += pss_bytes(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
        return total

    def stop(self) -> None:
        """End the server by SIGTERM, and whatever stays by SIGKILL."""
        self.find()
        self._root.terminate()
        try:
            self._root.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass  # it is killed below
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self.running or self.find():
            for pid in self.find():
                try:
                    # A tracker of multiprocessing ends after the others, and deletes what they have left in /dev/shm.
                    if b"multiprocessing.resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has just ended
            if time.monotonic() > deadline:
                raise ContenderError(f"processes {', '.join(map(str, self.find()))} of `{self._root.args!r}` cannot be ended")
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class Served:
    """What is served, and how the answers are checked.

    Attributes:
        members: The members.
        images: (N, C, H, W), with N at least 128, the largest number that all callers of a setting use together.
        expected: The correct probabilities (N, K) for `images`.
        repositories: Our repositories, by the key of the server.
        variables: Environment variables of all servers.
    """

    members: Sequence[ExportedMember]
    images: NDArray[np.float32]
    expected: Array
    repositories: Mapping[str, Path]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Running:
    """A server that answers correctly.

    Attributes:
        processes: Its processes.
        forms: Ways to call it.
        start_s: Seconds from the start of its first process to the first right answer.
    """

    processes: ServerProcesses
    forms: list[Form]
    start_s: float


@contextmanager
def running(contender: Contender, python: Path, served: Served) -> Iterator[Running]:
    """Start a server, wait for its first right answer, and end it.

    Args:
        contender: The server.
        python: The Python of its environment.
        served: What it serves.

    Raises:
        ContenderError: The server did not start.
        WrongAnswerError: Its first answer is wrong.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True)))
        launch = Launch(python, folder, free_port(), free_port(), served.repositories)
        command = contender.command(launch)
        began = time.monotonic()
        processes = ServerProcesses(command, folder, {**served.variables, **contender.environment_variables(launch)})
        stack.callback(processes.stop)
        url = f"http://127.0.0.1:{launch.http_port}"
        _wait_for_answer(contender, processes, url, served)
        start_s = time.monotonic() - began
        settled = time.monotonic() + _SETTLE_S
        while time.monotonic() < settled:
            _wait_for_answer(contender, processes, url, served)
        sockets = Sockets(url, contender.http)
        stack.callback(sockets.close)
        forms = [Form(contender.form_names[0], sockets.predict, "http")]
        if contender.grpc:
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{launch.grpc_port}"))
            grpc.channel_ready_future(channel).result(_START_TIMEOUT_S)
            model = FUSED if contender.key == FUSED else ENSEMBLE
            forms.append(Form(contender.form_names[1], predict_with_stub(channel, model), "grpc"))
        yield Running(processes, forms, start_s)


def _wait_for_answer(contender: Contender, processes: ServerProcesses, url: str, served: Served) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while processes.running:
        sockets = Sockets(url, contender.http)
        try:
            check_answers(Form(contender.title, sockets.predict), served.images[:1], served.expected[:1])
        except OSError as error:  # not listening, or not ready
            if time.monotonic() > deadline:
                raise ContenderError(
                    f"{contender.title} did not answer within {_START_TIMEOUT_S:g} s: {error}; it printed:\n{processes.log_end}"
                ) from error
            time.sleep(_POLL_S)
        else:
            return
        finally:
            sockets.close()
    raise ContenderError(f"{contender.title} ended before its first answer; it printed:\n{processes.log_end}")
