"""Starting Triton on a model repository, knowing that it answers rightly, and leaving nothing behind."""

from __future__ import annotations

import math
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from defensemble_repository.filesystem.regular_files import MAX_TEXT_BYTES, read_regular
from defensemble_repository.names import AVERAGING_NAME

from .addresses import address_from_host, claim_ports
from .admin_key import new_admin_key
from .errors import CrashError, PortError, ServerError, StartError, StateError
from .options import ServeOptions
from .process import restart
from .process.events import ServerEvent, forget_old_events, server_events, server_status
from .process.guard import Guard, last_lines
from .process.launch import command_line, prepare
from .process.state import (
    ServerState,
    connect_host,
    events_file,
    find_state,
    process_start,
    read_states,
    state_file,
    state_folder,
    when_written,
    write_state,
)
from .repository import Repository, config_path
from .runtime.find import Runtime

# A free port can be taken between choosing and listening; a second choice is another port.
_START_TRIES = 3  # where another program takes a port, or Triton crashes
_LOGS_KEPT = 20


@dataclass
class Server:
    """A running Triton: where it listens, what it serves and what it does not, and how it ends."""

    state: ServerState
    models: list[str]
    problems: Mapping[str, str]
    start_s: float
    guard: Guard
    profile: str | None = None

    @property
    def http_url(self) -> str:
        """URL for the client and for curl."""
        return self.state.http_url

    @property
    def grpc_url(self) -> str:
        """URL for the client."""
        return self.state.grpc_url

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self.state.address}:{self.state.metrics_port}/metrics"

    @property
    def running(self) -> bool:
        """Whether the server still runs, or is restarted."""
        return self.guard.running

    @property
    def triton_pid(self) -> int:
        """The process of `tritonserver` itself; after a restart the new one, as soon as its answers were checked."""
        return server_status(self.state).pid or self.guard.first_pid

    def events(self) -> list[ServerEvent]:
        """What has happened to it, the oldest first."""
        return server_events(self.state)

    def detach(self) -> None:
        """Let the server outlive this process; ``stop_server`` or ``defensemble serve --stop`` ends it."""
        self.guard.detach()

    def wait(self, on_event: Callable[[ServerEvent], None] = lambda event: None) -> int:
        """Wait until the server ends for good or is stopped from elsewhere; returns Triton's exit status.

        `on_event` is called for each event since the start: a death, a restart, the end.
        """
        known = 1  # the start: what came since then, before this was called too, is reported

        def look() -> None:
            nonlocal known
            events = self.events()
            # The guard drops old ones where there are very many.
            for event in events[known:] if len(events) >= known else events[-1:]:
                on_event(event)
            known = len(events)

        return self.guard.wait(look)

    def stop(self) -> None:
        """Drain the server, stop it and wait until all of it is gone. More than once does no harm."""
        self.guard.stop()

    def missing(self, *, strict: bool = False) -> str:
        """Why what is served is not enough, empty where it is.

        Enough is one model that can be called, and where the repository has ensembles, one ensemble; with `strict` it is everything.
        """
        names = [*self.models, *self.problems]
        ensembles = {name for name in names if _is_ensemble(Path(self.state.repository) / name, self.profile)}
        if strict and self.problems:
            return f"not everything is served ({', '.join(sorted(self.problems))} {'is' if len(self.problems) == 1 else 'are'} not)"
        if ensembles and not ensembles & set(self.models):
            return f"no ensemble is served (there {'is' if len(ensembles) == 1 else 'are'} {', '.join(sorted(ensembles))})"
        if all(AVERAGING_NAME.fullmatch(name) for name in self.models):
            return "nothing is served that can be called: averaging models are parts of ensembles"
        return ""

    def __repr__(self) -> str:
        return f"Server({self.grpc_url!r}, {self.http_url!r}, models={self.models})"


@contextmanager
def serve(
    repository: str | Path,
    options: ServeOptions | None = None,
    *,
    on_progress: Callable[[str], None] = lambda text: None,
    start_timeout_s: float = 300.0,
) -> Iterator[Server]:
    """Serve a model repository with Triton, until the context ends.

    The context is entered when a fixed image has gone through every classifier and ensemble and each ensemble's answer equals the average
    of its members'. Models that cannot be served are in ``Server.problems``; the others are served. When the context ends, or this process
    dies, the server is drained and stopped, and no process, port, shared memory or temporary folder is left.

    Raises:
        NotServableError: no model can be served, or the profile is not there, not complete, or not for this runtime and machine.
        RuntimeMissingError, BackendBuildError: the runtime is not complete.
        PortError: a port is taken.
        CrashError: Triton crashed at each of three starts.
        StartError: Triton did not come up in ``start_timeout_s``, or no model answers rightly; shows its last lines.
    """
    server = start_server(repository, options, on_progress=on_progress, start_timeout_s=start_timeout_s)
    try:
        yield server
    finally:
        if not server.guard.detached:
            server.stop()


def start_server(
    repository: str | Path,
    options: ServeOptions | None = None,
    *,
    on_progress: Callable[[str], None] = lambda text: None,
    start_timeout_s: float = 300.0,
) -> Server:
    """Do what ``serve`` does on entering; the caller has to call ``stop`` or ``detach``."""
    if not 0 < start_timeout_s < math.inf:
        raise ServerError(f"start_timeout_s must be a finite number above 0, got {start_timeout_s}")
    options = options or ServeOptions()
    options = replace(options, host=address_from_host(options.host), admin_key=options.admin_key or new_admin_key())
    runtime, content = prepare(Path(repository).resolve(), options, on_progress=on_progress)
    for last_try in (*[False] * (_START_TRIES - 1), True):
        ports = claim_ports(options.host, options.ports)
        try:
            return _start(runtime, content, options, ports, start_timeout_s, on_progress)
        except PortError:
            if last_try or any(options.ports.values()):
                raise
        except CrashError:
            # Triton 2.48 can, where one version of a model is refused while another loads (`StopBackendThread` of a half-built instance).
            if last_try:
                raise
            on_progress("Triton crashed while it started; starting it again")
    raise AssertionError("the last try returns or raises")


def stop_server(grpc_port: int | None = None, *, repository: Path | None = None, timeout_s: float = 60.0) -> ServerState:
    """Stop a server that was started here and left running: the one on `grpc_port`, that of the folder `repository`, or the only one.

    Raises:
        StateError: there is no such server, or it did not end in ``timeout_s``.
    """
    state = find_state(grpc_port, repository)
    state.terminate()
    deadline = time.monotonic() + timeout_s
    while state.alive:
        if time.monotonic() > deadline:
            raise StateError(
                f"the server on gRPC port {state.grpc_port} (process {state.pid}) did not end in {timeout_s} s; see {state.log}"
            )
        time.sleep(0.02)
    return state


def _start(
    runtime: Runtime,
    content: Repository,
    options: ServeOptions,
    ports: dict[str, int],
    timeout_s: float,
    on_progress: Callable[[str], None],
) -> Server:
    from .readiness import await_ready  # numpy and urllib3, 0.3 s, which the restart of a server does not wait for

    begin = time.monotonic()
    options = replace(options, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"])
    assert options.admin_key is not None
    log = _new_log(ports["grpc"])
    command = command_line(runtime, content, options, ports, options.admin_key)
    docker = runtime.name == "docker"
    if docker:
        on_progress(f"running (not tested by us): {shlex.join(command).replace(options.admin_key, 'ADMIN-KEY')}")
    guard = Guard(
        command,
        runtime.environment,
        log=log,
        state=state_file(ports["grpc"]),
        grace_s=options.drain_s + 5.0,  # requests get drain_s, and the server then needs a moment to end
        stop_signal=signal.SIGTERM if runtime.backend_directory is None else signal.SIGUSR1,
    )
    try:
        served, problems = await_ready(guard.first_pid, content, options, options.admin_key, log, timeout_s, guard_pid=guard.pid)
        state = ServerState(
            pid=guard.pid,
            started=process_start(guard.pid) or 0,
            runtime=runtime.name,
            host=options.host,
            http_port=ports["http"],
            grpc_port=ports["grpc"],
            metrics_port=ports["metrics"],
            repository=str(content.path),
            admin_key=options.admin_key,
            log=str(log),
        )
        write_state(state)
        host = connect_host(options.host)
        guard.ready(
            {
                "restart": options.restart and not docker,
                "about": {"guard_started": state.started, "problems": problems, **state.about},
                "events": str(events_file(state.grpc_port)),
                "http": [host, state.http_port],
                "grpc": [host, state.grpc_port],
                "child": restart.child_command(),
                "request": restart.request(content.path, options, timeout_s),
                "timeout_s": timeout_s,
            }
        )
    except BaseException as error:
        # Nobody waits for an answer of it; a container would outlive a `docker run` that is killed.
        guard.stop(at_once=not docker)
        if isinstance(error, StartError) and guard.crash_signal is not None:
            raise CrashError(f"Triton crashed while it started ({guard.crash_signal.name}){last_lines(log)}") from error
        raise
    return Server(state, served, problems, time.monotonic() - begin, guard, options.profile)


def _is_ensemble(folder: Path, profile: str | None) -> bool:
    """Whether a model's configuration says that it is an ensemble, or means to: it may be one that cannot be read."""
    try:
        text = read_regular(config_path(folder, profile), MAX_TEXT_BYTES)
    except OSError:
        return False
    text = re.sub(rb"#[^\n]*", b"", text)
    return re.search(rb"\b(platform\s*:\s*[\"']ensemble[\"']|ensemble_scheduling\b)", text) is not None


def _new_log(grpc_port: int) -> Path:
    """Where Triton's output goes, after what is there; of other ports the newest logs are kept, and those of servers that run."""
    folder = state_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / f"triton-{grpc_port}.log"
    states = read_states()
    in_use = {str(log), *(state.log for state in states)}
    for old in sorted(folder.glob("triton-*.log"), key=when_written)[:-_LOGS_KEPT]:
        if str(old) not in in_use:
            for part in (old, *folder.glob(f"{old.name}.*")):
                part.unlink(missing_ok=True)
    forget_old_events({grpc_port, *(state.grpc_port for state in states)})
    return log
