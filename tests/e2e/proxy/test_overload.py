"""Three times the load that a server can compute, through the proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from benchmarks.common.networks import random_images, untrained_networks
from benchmarks.common.servers import start_server, write_ensemble_repository
from benchmarks.faulting.overload import Overload, goodput_ratio, limit_from_capacity, measure_overload
from tests.support.nginx import require_nginx

ATTEMPTS = 3  # tests of other workers share the processors: their load looks like a drop of the goodput


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_nginx()
    members = untrained_networks(random_images(16, 0), 0, count=2, width=8).members
    return write_ensemble_repository(tmp_path_factory.mktemp("overload") / "repository", members)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_goodput_latency_memory_and_recovery_at_three_times_the_capacity(
    repository: Path, tmp_path: Path, protocol: Literal["http", "grpc"]
) -> None:
    overload = Overload(objective_ms=500, factors=(1, 3), step_s=3, protocol=protocol, paths=("proxy",))
    with start_server(repository) as (server, _):
        for attempt in range(ATTEMPTS):
            result = measure_overload(server, tmp_path / f"nginx{attempt}", overload)
            first, last = result["proxy"]["rows"]
            # Refused at once, never lost: these hold in any attempt.
            assert "NotReadyError" in last["failures"]
            # A client of gRPC asks whether the server is alive, which takes longer than it waits if the machine is busy.
            assert set(last["failures"]) <= {"NotReadyError", *(["ConnectionFailedError"] if protocol == "grpc" else [])}
            assert last["answered"] + sum(last["failures"].values()) == last["sent"]
            assert last["pss_peak_bytes"] - first["pss_before_bytes"] < 32 << 20
            if (result["proxy"]["goodput_ratio"] or 0) >= 0.8 and last["recovery_s"] < 2:
                break
        assert result["proxy"]["goodput_ratio"] >= 0.8
        assert last["recovery_s"] < 2
        assert last["p99_ms"] < 2 * overload.objective_ms
        assert [event.kind for event in server.events()] == ["started"]


def test_the_limit_of_requests_in_flight() -> None:
    assert limit_from_capacity(400, 250) == 50
    assert limit_from_capacity(1, 1) == 8, "each core has work while answers are sent"


def test_the_ratio_of_the_goodput() -> None:
    rows = [{"goodput_per_s": value} for value in (10.0, 20.0, 15.0)]
    assert goodput_ratio(rows) == 0.75
    assert goodput_ratio([*rows, {"goodput_per_s": None}]) is None
    assert goodput_ratio([{"goodput_per_s": 0.0}]) is None
