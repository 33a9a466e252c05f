"""One real Triton for the whole run, and a state folder that is not the user's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from defensemble_server import Server

# Before anything imports ONNX Runtime: its wheels send events otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# A shell starts background jobs with SIGINT ignored, which our children would inherit: some tests interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files whose tests take long: first, so that no worker is left with one of them when the others have ended.
_LONG = (
    "tests/training/trainer/test_run_state.py",
    "tests/e2e/test_docs.py",
    "tests/e2e/test_ensembles_page.py",
    "tests/e2e/test_flow.py",
    "tests/e2e/test_readme.py",
    "tests/training/trainer/test_processes.py",
    "tests/e2e/ensembles/test_crash_walk.py",
    "tests/e2e/ensembles/test_failing_steps.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first; the order within a file, and of the others, stays."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(_LONG)))


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Servers of the tests are written down here, for child processes too."""
    before = os.environ.get("XDG_STATE_HOME")
    folder = tmp_path_factory.mktemp("state")
    os.environ["XDG_STATE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the linear members `alpha` (seed 1) and `beta` (seed 2), weights 1 and 3, and their ensemble `ensemble`."""
    from defensemble_server import ServeOptions, serve
    from tests.support.tiny import leftovers, write_repository

    folder = write_repository(tmp_path_factory.mktemp("served") / "repository", weight={"beta": 3.0})
    shared_memory = set(os.listdir("/dev/shm"))
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        yield server
    assert leftovers(folder) == []
    assert set(os.listdir("/dev/shm")) <= shared_memory
