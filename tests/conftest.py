"""What all tests share: one real Triton, a state folder that is not the user's, and which tests and how many examples are run."""

from __future__ import annotations

import argparse
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from defensemble_server import Server

# Before anything imports ONNX Runtime: its wheels send events otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# A shell starts background jobs with SIGINT ignored, which our children would inherit: some tests interrupt them.
signal.signal(signal.SIGINT, signal.default_int_handler)


# The machine may be busy, and each example writes the files in its folder again.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("default", UNTIMED, max_examples=50)
settings.register_profile("slow", UNTIMED, max_examples=300)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="I/N", type=part_from_text, help="of the slow tests, run only each N-th, from the I-th on")


def part_from_text(text: str) -> tuple[int, int]:
    """I and N of "I/N"."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if found is None or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, such as 2/5; got {text!r}")
    return int(found[1]), int(found[2])


def pytest_configure(config: pytest.Config) -> None:
    """Use more examples where slow tests are selected."""
    if config.getoption("--hypothesis-profile") is None:
        settings.load_profile("default" if config.option.markexpr == "not slow" else "slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the other parts of the slow tests; the neighbours in a file, which take about as long, go to different parts."""
    part: tuple[int, int] | None = config.getoption("--part")
    if part is None:
        return
    first, count = part
    slow = [item for item in items if item.get_closest_marker("slow") is not None]
    others = {item for number, item in enumerate(slow) if number % count != first - 1}
    config.hook.pytest_deselected(items=list(others))
    items[:] = [item for item in items if item not in others]


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


@pytest.fixture
def no_shared_memory_left() -> Iterator[None]:
    """The test leaves nothing in /dev/shm."""
    from tests.support.shared_memory import none_left

    with none_left():
        yield


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the linear members `alpha` (seed 1) and `beta` (seed 2), weights 1 and 3, and their ensemble `ensemble`."""
    from defensemble_server import ServeOptions, serve
    from tests.support.shared_memory import none_left
    from tests.support.tiny import leftovers, write_repository

    folder = write_repository(tmp_path_factory.mktemp("served") / "repository", weight={"beta": 3.0})
    with none_left(), serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1)) as server:
        yield server
    assert leftovers(folder) == []
