"""More load than a server can compute, through the proxy. `benchmarks/faults.py --overload` has the goals for goodput and times."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from benchmarks.common.networks import random_images, untrained_networks
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.faulting.overload import Overload, limit_from_capacity, measure_overload
from benchmarks.faulting.overload_figures import memory_gained_mb
from tests.support.nginx import require_nginx


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_nginx()
    members = untrained_networks(random_images(16, 0), 0, count=2, width=8).members
    return write_ensemble_repository(tmp_path_factory.mktemp("overload") / "repository", members)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_each_call_at_three_times_the_capacity_is_answered_or_refused(
    repository: Path, tmp_path: Path, protocol: Literal["http", "grpc"]
) -> None:
    overload = Overload(objective_ms=500, factors=(1, 3), step_s=3, protocol=protocol, paths=("proxy",))
    with start_server(repository) as (server, _):
        rows = measure_overload(server, tmp_path / "nginx", overload)["proxy"]["rows"]
        assert [event.kind for event in server.events()] == ["started"]
    last = rows[-1]
    # A client of gRPC asks whether the server is alive, which takes longer than it waits if the machine is busy.
    refusals = {"NotReadyError", *(["ConnectionFailedError"] if protocol == "grpc" else [])}
    assert last["failures"]
    assert set(last["failures"]) <= refusals
    assert last["answered"] > 0
    assert last["answered"] + sum(last["failures"].values()) == last["sent"]
    assert last["recovery_s"] is not None, "small calls are answered in time again"
    gained_mb = memory_gained_mb(rows)
    assert gained_mb is not None
    assert gained_mb < 32


def test_the_limit_of_requests_in_flight() -> None:
    assert limit_from_capacity(400, 250) == 50
    assert limit_from_capacity(1, 1) == 8, "each core has work while answers are sent"
