"""A server with several processes: start it, measure its memory, and end all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.processes import descendants, process_start_s, pss_bytes

ROOT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 15.0
_SHOWN_BYTES = 4000
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_POLL_S = 0.02


class ServerProcessesError(Exception):
    """Processes of a server cannot be ended."""


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
                raise ServerProcessesError(f"processes {', '.join(map(str, self.find()))} of `{self._root.args!r}` cannot be ended")
            time.sleep(_POLL_S)
