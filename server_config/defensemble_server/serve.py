"""Start Triton on a model repository, verify its answers, and stop it without leaving anything behind."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from defensemble_repository.names import AVERAGING_NAME

from .addresses import address_from_host, claim_ports
from .admin_key import new_admin_key
from .errors import CrashError, PortError, ServerError, StartError, StateError
from .options import ServeOptions
from .process import restart
from .process.events import ServerEvent, forget_old_events, server_events, server_status
from .process.guard import Guard, last_lines
from .process.guard_process.notify import notify
from .process.launch import command_line, prepare
from .process.python_command import main_command
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
from .repository import Repository, declares_ensemble
from .runtime.find import Runtime

# Another program can take a free port before Triton listens on it, and Triton can crash during startup.
_START_TRIES = 3
_LOGS_KEPT = 20


@dataclass
class Server:
    """A running Triton.

    Args:
        state: Its addresses, process and log.
        models: Names of the models that it serves.
        problems: For each model that it does not serve, the reason.
        start_s: Seconds from the start until the answers were verified.
        guard: The guard process that restarts and stops it.
        profile: The serving profile, or None.

    Example:
        >>> with serve("model_repository") as server:
        ...     print(server.http_url, server.models)
    """

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
    def supervisor_url(self) -> str | None:
        """URL of the supervisor; None without one."""
        return self.state.supervisor_url

    @property
    def running(self) -> bool:
        """Whether the server is running or restarting."""
        return self.guard.running

    @property
    def triton_pid(self) -> int:
        """Process ID of `tritonserver`; after a restart, the new one as soon as its answers were verified."""
        return server_status(self.state).pid or self.guard.first_pid

    def events(self) -> list[ServerEvent]:
        """Return the events of this server, oldest first."""
        return server_events(self.state)

    def notify_ready(self) -> None:
        """Report to the service manager (systemd) that the server is ready, if one started this process.

        Raises:
            OSError: The message could not be sent.
        """
        notify("READY=1")

    def supervisor_answers(self, within_s: float) -> bool:
        """Wait until the supervisor answers; return whether it does, or there is none, within `within_s` seconds."""
        import urllib3

        deadline = time.monotonic() + within_s
        while self.supervisor_url is not None:
            try:
                urllib3.request("GET", f"{self.supervisor_url}/healthz", retries=False, timeout=1.0)
                return True
            except urllib3.exceptions.HTTPError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        return True

    def detach(self) -> None:
        """Keep the server running after this process ends; `stop_server` or `defensemble serve --stop` stops it."""
        self.guard.detach()

    def wait(self, on_event: Callable[[ServerEvent], None] = lambda event: None) -> int:
        """Wait until the server ends or another process stops it; return Triton's exit status.

        `on_event` is called for each event after the start, including those before this call: a death, a restart, the end.
        """
        reported = 1  # the event of the start

        def report_new_events() -> None:
            nonlocal reported
            events = self.events()
            # The guard drops the oldest events if there are very many.
            for event in events[reported:] if len(events) >= reported else events[-1:]:
                on_event(event)
            reported = len(events)

        return self.guard.wait(report_new_events)

    def stop(self) -> None:
        """Drain and stop the server, and wait until all its processes have ended. Calling this again has no effect."""
        self.guard.stop()

    def missing(self, *, strict: bool = False) -> str:
        """Return why too little is served, or an empty string.

        At least one model that clients can call must be served, and at least one ensemble if the repository has any; with `strict`,
        everything.
        """
        names = [*self.models, *self.problems]
        ensembles = {name for name in names if declares_ensemble(Path(self.state.repository) / name, self.profile)}
        if strict and self.problems:
            return f"--strict: not served: {', '.join(sorted(self.problems))}"
        if ensembles and not ensembles & set(self.models):
            return f"no ensemble is served; the repository has {', '.join(sorted(ensembles))}"
        if all(AVERAGING_NAME.fullmatch(name) for name in self.models):
            return "only averaging models are served, which clients cannot call: they are parts of ensembles"
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
    """Serve a model repository with Triton until the context ends.

    The context is entered once every classifier and ensemble has answered a fixed image, and each ensemble's answer equals the average of
    its members' answers. Models that cannot be served are in `Server.problems`; the others are served. When the context ends, or this
    process dies, the server is drained and stopped, and no process, port, shared memory or temporary folder is left.

    Args:
        repository: The model repository.
        options: Address, runtime and profile; by default `ServeOptions()`.
        on_progress: Receives messages about the start.
        start_timeout_s: Seconds until the models must be loaded and verified.

    Raises:
        NotServableError: No model can be served, or the profile is missing, incomplete, or not for this runtime and machine.
        RuntimeMissingError, BackendBuildError: The runtime is incomplete.
        PortError: A port is in use.
        CrashError: Triton crashed at each of three starts.
        StartError: Triton did not start in `start_timeout_s`, or no model answers correctly; the text ends with the last lines of its log.

    Example:
        >>> with serve("model_repository", ServeOptions(http_port=0, grpc_port=0, metrics_port=0)) as server:
        ...     Client(server.grpc_url).predict(images)
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
    """Start a server as `serve` does; the caller must call `Server.stop` or `Server.detach`.

    The arguments and errors are those of `serve`.
    """
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
            # Triton 2.48 can crash if one version of a model fails to load while another one loads (in `StopBackendThread`).
            if last_try:
                raise
            on_progress("Triton crashed during startup; starting it again")
    raise AssertionError("the last try returns or raises")


def stop_server(grpc_port: int | None = None, *, repository: Path | None = None, timeout_s: float = 60.0) -> ServerState:
    """Stop a detached server on this machine.

    Args:
        grpc_port: Its gRPC port; None: any.
        repository: Its model repository; None: any.
        timeout_s: Seconds until it must have ended.

    Raises:
        StateError: No server matches, several do, or it did not end in `timeout_s`.
    """
    state = find_state(grpc_port, repository)
    state.terminate()
    deadline = time.monotonic() + timeout_s
    while state.alive:
        if time.monotonic() > deadline:
            raise StateError(
                f"the server on gRPC port {state.grpc_port} (process {state.pid}) did not end within {timeout_s} s; see {state.log}"
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
    from .readiness import await_ready  # imports numpy and urllib3, 0.3 s that a restart must not take

    begin = time.monotonic()
    options = replace(options, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"])
    options = replace(options, supervisor_port=ports.get("supervisor", 0))
    assert options.admin_key is not None
    log = _new_log(ports["grpc"])
    command = command_line(runtime, content, options, ports, options.admin_key)
    docker = runtime.name == "docker"
    if docker:
        on_progress(f"running (this command has not been tested): {shlex.join(command).replace(options.admin_key, 'ADMIN-KEY')}")
    guard = Guard(
        command,
        runtime.environment,
        log=log,
        state=state_file(ports["grpc"]),
        grace_s=options.drain_s + 5.0,  # running requests get drain_s, then the server needs time to end
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
            supervisor_port=ports.get("supervisor", 0),
        )
        write_state(state)
        host = connect_host(options.host)
        request = restart.start_request(content.path, options, timeout_s)
        supervisor = {"command": main_command(f"{__package__}.supervisor.main"), "request": request}
        guard.ready(
            {
                "restart": options.restart and not docker,
                "about": {"guard_started": state.started, "problems": problems, **state.about},
                "events": str(events_file(state.grpc_port)),
                "http": [host, state.http_port],
                "grpc": [host, state.grpc_port],
                "child": main_command(restart.__name__),
                "request": request,
                "timeout_s": timeout_s,
                "supervisor": supervisor if options.check_interval_s else None,
            }
        )
    except BaseException as error:
        # There are no callers to drain. A container would outlive a killed `docker run`.
        guard.stop(kill=not docker)
        if isinstance(error, StartError) and guard.crash_signal is not None:
            raise CrashError(f"Triton crashed during startup ({guard.crash_signal.name}){last_lines(log)}") from error
        raise
    return Server(state, served, problems, time.monotonic() - begin, guard, options.profile)


def _new_log(grpc_port: int) -> Path:
    """Return the log file for a gRPC port, and remove the oldest logs of servers that have ended."""
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
