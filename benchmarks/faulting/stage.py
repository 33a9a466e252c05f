"""A stage of a fault: servers of one repository, an acknowledged edit, and callers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.answers import Array
from benchmarks.common.callers import NO_RETRIES, Job
from benchmarks.common.oracle import find_mistake
from benchmarks.common.servers import ENSEMBLE, start_server, write_ensemble_repository
from benchmarks.faulting.callers import OUTPUTS, Call, SteadyCallers
from benchmarks.faulting.fault import Effort
from defensemble import Client, DefensembleError
from defensemble.ensembles import Ensembles
from defensemble_export import ExportedMember
from defensemble_repository.averaging import reference_outputs
from defensemble_server import Server

CALLERS = 2  # per protocol
CHECK_INTERVAL_S = 1.0  # of the supervisor, as `defensemble serve` has it
_WEIGHT, _LATER_WEIGHT = 2.0, 3.0
_POLL_S = 0.02
_PROBE_S = 2.0


@dataclass(frozen=True)
class Stage:
    """Servers with an ensemble whose first member is trapped, and whose weight was edited.

    Attributes:
        servers: The servers, of the same repository.
        repository: The repository.
        members: The members; the first is trapped.
        logits: Their logits (M, P, K) for the pool.
        pool: The images of the callers.
        effort: How long and how much.
        seed: Seed of everything that is random.
    """

    servers: Sequence[Server]
    repository: Path
    members: Sequence[ExportedMember]
    logits: Array
    pool: NDArray[np.float32]
    effort: Effort
    seed: int

    @property
    def server(self) -> Server:
        """The first server."""
        return self.servers[0]

    @property
    def urls(self) -> Mapping[str, tuple[str, ...]]:
        """The URLs by protocol."""
        return {"grpc": tuple(server.grpc_url for server in self.servers), "http": tuple(server.http_url for server in self.servers)}

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports of the first server by name."""
        state = self.server.state
        return {"http": state.http_port, "grpc": state.grpc_port, "metrics": state.metrics_port, "supervisor": state.supervisor_port}

    @property
    def first(self) -> str:
        """Name of the trapped member, which has another version after a repair."""
        return self.members[0].name

    def expected(self, weight: float = _WEIGHT) -> Mapping[str, Array]:
        """Return the outputs for the pool, with a weight of the first member."""
        return reference_outputs([*self.logits], "probabilities", [weight, *[1.0] * (len(self.logits) - 1)])

    def jobs(self) -> list[Job[Call]]:
        """Return the callers."""
        return [
            SteadyCallers(urls, tuple(range(CALLERS * index, CALLERS * (index + 1))), ENSEMBLE, self.pool, self.expected(), self.seed)
            for index, urls in enumerate(self.urls.values())
        ]

    def edit(self, weight: float) -> None:
        """Set the weight of the first member, at all servers.

        Raises:
            DefensembleError, RepositoryError, OSError: The edit failed.
        """
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(server.http_url, admin_key=server.state.admin_key)) for server in self.servers]
            Ensembles(self.repository, clients).weight(ENSEMBLE, {self.first: weight})

    def history(self) -> list[str]:
        """Return the identifiers of the recorded edits."""
        return [edit.id for edit in Ensembles(self.repository).history()]

    def find_problem(self, expected: Mapping[str, Array]) -> str | None:
        """Call every server over every protocol once, and return what is wrong, or None."""
        rows = np.arange(min(4, len(self.pool)))
        for url in (url for urls in self.urls.values() for url in urls):
            try:
                with Client(url, ENSEMBLE, timeout_s=_PROBE_S, retry=NO_RETRIES) as client:
                    problem = find_mistake(client.predict(self.pool[rows], outputs=OUTPUTS).received, expected, rows, OUTPUTS)
            except DefensembleError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                return f"{url}: {problem}"
        return None

    def await_right(self) -> str | None:
        """Wait until every server answers correctly; return what is still wrong when the patience ends, or None."""
        deadline = time.monotonic() + self.effort.patience_s
        while (problem := self.find_problem(self.expected())) is not None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return problem

    def edit_later(self) -> str | None:
        """Edit after the fault. Returns what is wrong with the edit or the answers after it, or None."""
        try:
            self.edit(_LATER_WEIGHT)
        except Exception as error:  # whatever it was, the ensemble cannot be edited
            return f"the edit failed: {type(error).__name__}: {error}"
        return self.find_problem(self.expected(_LATER_WEIGHT))


@contextmanager
def staged(
    members: Sequence[ExportedMember],
    logits: Array,
    pool: NDArray[np.float32],
    repository: Path,
    effort: Effort,
    *,
    replicas: int = 1,
    seed: int = 0,
) -> Iterator[Stage]:
    """Serve an ensemble of `members`, whose first is trapped, and edit it once.

    Args:
        members: The members.
        logits: Their logits (M, P, K) for the pool.
        pool: The images of the callers.
        repository: Folder of the repository, which does not exist yet.
        effort: How long and how much.
        replicas: Number of servers.
        seed: Seed of everything that is random.

    Raises:
        DefensembleError, ServerError, RepositoryError, OSError: A server cannot be started, or the edit failed.
    """
    write_ensemble_repository(repository, members)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(start_server(repository, check_interval_s=CHECK_INTERVAL_S, supervisor_port=0))[0] for _ in range(replicas)
        ]
        stage = Stage(servers, repository, members, logits, pool, effort, seed)
        stage.edit(_WEIGHT)
        yield stage
