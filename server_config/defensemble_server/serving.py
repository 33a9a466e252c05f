"""Starting Triton on a model repository, knowing that it answers rightly, and leaving nothing behind."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import urllib3

from ._errors import NotServableError, PortError, StartError, StateError
from .options import ServeOptions, address_from_host, claim_ports, cores, new_admin_key, reached_at, triton_command
from .plans import hold_code
from .profiles import check_gpu, check_profile, engine_caches
from .readiness import Probe, check_answers, failed_models
from .repository import BACKEND, Repository, read_repository
from .runtime import Runtime, find_runtime
from .state import ServerState, find_state, listens, process_start, read_states, state_file, state_folder, write_state
from .supervising import Supervisor, last_lines

# A free port can be taken between choosing and listening; a second choice is another port.
_PORT_TRIES = 3
_LOGS_KEPT = 20
# Written by `defensemble ensemble` before an edit, and gone after it.
PENDING_FILE = "pending-edit.json"


@dataclass
class Server:
    """A running Triton: where it listens, what it serves and what it does not, and how it ends."""

    state: ServerState
    models: list[str]
    problems: Mapping[str, str]
    start_s: float
    supervisor: Supervisor

    @property
    def http_url(self) -> str:
        """URL for the client and for curl."""
        return f"http://{self._host}:{self.state.http_port}"

    @property
    def grpc_url(self) -> str:
        """URL for the client."""
        return f"grpc://{self._host}:{self.state.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._host}:{self.state.metrics_port}/metrics"

    @property
    def running(self) -> bool:
        """Whether the server still runs."""
        return self.supervisor.running

    @property
    def triton_pid(self) -> int:
        """The process of ``tritonserver`` itself."""
        return self.supervisor.server_pid

    def detach(self) -> None:
        """Let the server outlive this process; ``stop_server`` or ``defensemble serve --stop`` ends it."""
        self.supervisor.detach()

    def wait(self) -> int:
        """Wait until the server ends by itself or is stopped from elsewhere; returns Triton's exit status."""
        return self.supervisor.wait()

    def stop(self) -> None:
        """Drain the server, stop it and wait until all of it is gone. More than once does no harm."""
        self.supervisor.stop()

    @property
    def _host(self) -> str:
        return reached_at(self.state.host)

    def __repr__(self) -> str:
        return f"Server({self.grpc_url!r}, {self.http_url!r}, models={self.models})"


@contextmanager
def serve(
    repository: str | Path,
    options: ServeOptions | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
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
        StartError: Triton did not come up in ``start_timeout_s``, or no model answers rightly; shows its last lines.
    """
    server = start_server(repository, options, say=say, start_timeout_s=start_timeout_s)
    try:
        yield server
    finally:
        if not server.supervisor.detached:
            server.stop()


def start_server(
    repository: str | Path,
    options: ServeOptions | None = None,
    *,
    say: Callable[[str], None] = lambda text: None,
    start_timeout_s: float = 300.0,
) -> Server:
    """Do what ``serve`` does on entering; the caller has to call ``stop`` or ``detach``."""
    options = options or ServeOptions()
    options = replace(options, host=address_from_host(options.host))
    folder = Path(repository).resolve()
    embedded = options.runtime == "embedded"
    content = read_repository(folder, profile=options.profile, only_backend=BACKEND if embedded else None)
    if options.profile is not None:
        check_profile(folder, options.profile, only_cpus=embedded, say=say)
    _check_not_empty(content)
    whole = content
    content, unused = content.without_unused_averages()
    if not content.models:
        content, unused = whole, []
    if unused:
        models = "model" if len(unused) == 1 else "models"
        say(f"not loaded: {len(unused)} averaging {models} that no ensemble uses (`defensemble ensemble prune` deletes what is not used)")
    for name in content.two_averaging_models:
        say(
            f"'{name}' is averaged by two models, as earlier versions wrote it: a gRPC call that is cancelled or expires can crash the "
            f"server; `defensemble ensemble reload {name}` makes one model of them"
        )
    if (folder / PENDING_FILE).exists():
        mend = "`defensemble ensemble show` tells, and finishes or undoes it"
        say(f"{folder / PENDING_FILE}: an edit of an ensemble is under way, or was cut short: {mend}")
    runtime = find_runtime(options.runtime, say=say)
    content = check_gpu(content, runtime, strict=options.profile is not None, say=say)
    _check_not_empty(content)
    for last_try in (*[False] * (_PORT_TRIES - 1), True):
        ports = claim_ports(options)
        try:
            return _start(runtime, content, options, ports, start_timeout_s, say)
        except PortError:
            if last_try or any(options.ports.values()):
                raise
    raise AssertionError("the last try returns or raises")


def stop_server(grpc_port: int | None = None, *, timeout_s: float = 60.0) -> ServerState:
    """Stop a server that was started here and left running: the one on ``grpc_port``, or the only one.

    Raises:
        StateError: there is no such server, or it did not end in ``timeout_s``.
    """
    state = find_state(grpc_port)
    state.terminate()
    deadline = time.monotonic() + timeout_s
    while state.alive:
        if time.monotonic() > deadline:
            raise StateError(
                f"the server on gRPC port {state.grpc_port} (process {state.pid}) did not end in {timeout_s} s; see {state.log}"
            )
        time.sleep(0.02)
    return state


def _check_not_empty(content: Repository) -> None:
    if not content.models:
        raise NotServableError(f"no model in {content.path} can be served:\n{_listed(content.problems)}")


def _start(
    runtime: Runtime, content: Repository, options: ServeOptions, ports: dict[str, int], timeout_s: float, say: Callable[[str], None]
) -> Server:
    begin = time.monotonic()
    admin_key = options.admin_key or new_admin_key()
    log = _new_log(ports["grpc"])
    threads = content.threads_per_member(cores())
    command = triton_command(
        runtime,
        content.path,
        list(content.models),
        options=options,
        ports=ports,
        admin_key=admin_key,
        threads=threads,
        gpus=any(model.wants_gpu for model in content.models.values()),
        caches=engine_caches(content),
        plans_hold_code=hold_code(content),
    )
    if runtime.name == "docker":
        say(f"running (not tested by us): {shlex.join(command).replace(admin_key, 'ADMIN-KEY')}")
    # Triton drains for drain_s, and then needs a moment to end.
    supervisor = Supervisor(command, runtime.environment, log=log, state=state_file(ports["grpc"]), grace_s=options.drain_s + 5.0)
    try:
        served, failed = _await_ready(supervisor, content, options, ports, admin_key, log, timeout_s)
        state = ServerState(
            pid=supervisor.pid,
            started=process_start(supervisor.pid) or 0,
            runtime=runtime.name,
            host=options.host,
            http_port=ports["http"],
            grpc_port=ports["grpc"],
            metrics_port=ports["metrics"],
            repository=str(content.path),
            admin_key=admin_key,
            log=str(log),
        )
        write_state(state)
    except BaseException:
        supervisor.stop()
        raise
    return Server(state, served, {**content.problems, **failed}, time.monotonic() - begin, supervisor)


def _await_ready(
    supervisor: Supervisor, content: Repository, options: ServeOptions, ports: dict[str, int], admin_key: str, log: Path, timeout_s: float
) -> tuple[list[str], dict[str, str]]:
    """Wait until Triton answers, and check what it answers; the models that it serves, and why it does not serve the others."""
    deadline = time.monotonic() + timeout_s
    with urllib3.HTTPConnectionPool(reached_at(options.host), ports["http"], maxsize=1) as pool:
        probe = Probe(pool, admin_key)
        while not (probe.live() and (options.runtime == "docker" or _listens(supervisor, ports["http"]))):
            if not supervisor.running:
                # A PortError, where one was taken meanwhile.
                claim_ports(replace(options, http_port=ports["http"], grpc_port=ports["grpc"], metrics_port=ports["metrics"]))
                raise StartError(f"Triton ended while it started{last_lines(log)}")
            if time.monotonic() > deadline:
                raise StartError(f"Triton did not answer within {timeout_s:g} s{last_lines(log)}")
            time.sleep(0.01)
        failed = failed_models(probe, content)
        served = [name for name in content.models if name not in failed]
        if not served:
            raise NotServableError(f"Triton could load none of the models in {content.path}:\n{_listed({**content.problems, **failed})}")
        wrong = check_answers(probe, content, served)
        if len(wrong) == len(served):
            raise StartError(f"none of the models in {content.path} answers rightly:\n{_listed(wrong)}")
        for name in wrong:
            probe.unload(name)
    return [name for name in served if name not in wrong], {**failed, **wrong}


def _listens(supervisor: Supervisor, port: int) -> bool:
    try:
        return listens(supervisor.server_pid, port)
    except OSError:
        # What the kernel says of a process that ends differs by the moment (ENOENT, ESRCH, EINVAL, ENXIO); of one that runs it is an error.
        if process_start(supervisor.server_pid) is not None:
            raise
        return False  # which the caller sees next


def _new_log(grpc_port: int) -> Path:
    """Where Triton's output goes; the newest logs are kept, and those of servers that run."""
    folder = state_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    in_use = {state.log for state in read_states()}
    for old in sorted(folder.glob("triton-*.log"), key=_written)[:-_LOGS_KEPT]:
        if str(old) not in in_use:
            old.unlink(missing_ok=True)
    return folder / f"triton-{grpc_port}.log"


def _written(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # another start has removed it just now


def _listed(problems: Mapping[str, str]) -> str:
    return "\n".join(f"  {name}: {text}" for name, text in problems.items())
