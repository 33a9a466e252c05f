"""nginx with the shipped configuration in front of a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.common.nginx import Nginx
from defensemble_server import Server, serve
from tests.support import tiny
from tests.support.calls import FREE, write_slow_model
from tests.support.nginx import nginx_before


@pytest.fixture(scope="package")
def proxied(triton: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A proxy in front of the fixture `triton`."""
    with nginx_before(triton, tmp_path_factory.mktemp("nginx")) as nginx:
        yield nginx


@pytest.fixture(scope="package")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of `alpha`, `beta`, their ensemble, and `slow`."""
    folder = write_slow_model(tiny.write_repository(tmp_path_factory.mktemp("slow") / "repository", weight={"beta": 3.0}))
    with serve(folder, FREE) as server:
        yield server
    assert tiny.leftovers(folder) == []


@pytest.fixture
def nginx_folder(tmp_path: Path) -> Path:
    """The folder of a proxy of one test's own."""
    return tmp_path / "nginx"
