"""Locust with our users, in its own Python environment: a master with two workers, and 50 users who do not block each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from defensemble import Client
from tests.support import tiny
from tests.support.kserve_servers import environment
from tests.support.locust import SOURCES
from tests.support.scripted import free_port
from tests.support.shared_memory import none_left

if TYPE_CHECKING:
    from defensemble_server import Server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.version_info < (3, 11), reason="Locust's pinned version needs Python 3.11")]

DELAY_S = 0.5
USERS = 50
LOCUSTFILE = SOURCES / "locustfile.py"


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("locust", SOURCES)


def started(python: Path, locustfile: Path, *options: object) -> subprocess.Popen[str]:
    """A process of Locust, which sees the packages of this one too."""
    command = [str(python), "-m", "locust", "-f", str(locustfile), *map(str, options)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def run(python: Path, locustfile: Path, *options: object) -> tuple[int, list[dict[str, Any]], str]:
    """The exit status, the statistics and the log of a run without workers or of a master."""
    with started(python, locustfile, "--headless", "--json", "--stop-timeout", 20, *options) as process:
        try:
            output, log = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, json.loads(output or "[]"), log


def counted(url: str) -> int:
    """The requests to the ensemble that the server has counted."""
    with Client(url) as client:
        return next(one.requests for one in client.transport.statistics(10) if one.name == "ensemble")


def test_a_master_and_two_workers_report_the_requests_that_the_server_counted(python: Path, triton: Server, tmp_path: Path) -> None:
    url, port = triton.http_url, free_port()
    before = counted(url)
    workers = [started(python, LOCUSTFILE, "--worker", "--master-host", "127.0.0.1", "--master-port", port) for _ in range(2)]
    try:
        status, (statistics,), log = run(
            python,
            LOCUSTFILE,
            *("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", 2),
            *("--host", url, "--csv", tmp_path / "locust"),
        )
        logs = [worker.communicate(timeout=60)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait(10)
    assert (status, statistics["num_failures"]) == (0, 0), log
    assert statistics["name"] == "ensemble"
    # Each worker has asked for the model with one request of its own.
    assert statistics["num_requests"] == counted(url) - before - len(workers), logs
    assert statistics["num_requests"] > 10
    assert statistics["total_content_length"] == statistics["num_requests"] * 2 * len(tiny.CLASSES) * 4
    assert "infer,ensemble," in (tmp_path / "locust_stats.csv").read_text()


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that answers each call after half a second: it waits so long for a batch that is never full."""
    from defensemble_repository.pbtxt import config_from_pbtxt, pbtxt_from_config
    from defensemble_server import ServeOptions, serve

    folder = tiny.write_repository(tmp_path_factory.mktemp("slow") / "repository", {"alpha": 1}, ensemble=None, max_batch_size=128)
    path = folder / "alpha" / "config.pbtxt"
    config = config_from_pbtxt(path.read_text(), "alpha")
    config.dynamic_batching.preferred_batch_size.append(128)
    config.dynamic_batching.max_queue_delay_microseconds = round(DELAY_S * 1e6)
    path.write_bytes(pbtxt_from_config(config))
    with none_left(), serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        yield server
    assert tiny.leftovers(folder) == []


def test_users_do_not_block_each_other(python: Path, slow_server: Server, tmp_path: Path) -> None:
    locustfile = written(tmp_path, "model = 'alpha'")
    url = slow_server.http_url
    status, (statistics,), log = run(python, locustfile, "--host", url, "--users", USERS, "--spawn-rate", USERS, "--run-time", "6s")
    assert (status, statistics["num_failures"]) == (0, 0), log
    # A request that joins others waits for less than the delay. One after another, users would get two answers per second, and all
    # together a hundred; a busy machine makes fewer calls.
    assert statistics["total_response_time"] / statistics["num_requests"] > 500 * DELAY_S
    assert max(statistics["num_reqs_per_sec"].values()) > 10 / DELAY_S


def test_failures_are_reported_by_kind_and_a_mistake_ends_the_run(python: Path, triton: Server, tmp_path: Path) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    status, (statistics,), log = run(python, written(tmp_path, "pass"), "--host", dead, "--users", 2, "--run-time", "2s")
    assert status == 1
    assert statistics["num_requests"] == statistics["num_failures"] > 0, log
    assert "ConnectionFailedError" in log
    url = triton.http_url
    for host, fields, fact in (
        (triton.grpc_url, "pass", "grpc://"),
        (url, "batch_size = 9", "at most 8"),
        (url, "model = 'alpha'; outputs = ('entropies',)", "entropies"),
    ):
        status, _, log = run(python, written(tmp_path, fields), "--host", host, "--users", 1, "--run-time", "60s")
        assert (status, fact in log) == (1, True), log
        assert "Traceback" not in log


def written(folder: Path, fields: str) -> Path:
    """A locustfile of a user with these fields."""
    path = folder / "locustfile.py"
    path.write_text(f"from defensemble.load.locust_user import DefensembleUser\n\n\nclass OneUser(DefensembleUser):\n    {fields}\n")
    return path
