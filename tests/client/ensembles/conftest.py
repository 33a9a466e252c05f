"""A server for tests to edit, restored after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from defensemble.ensembles import Ensembles
from tests.support.tiny import content, leftovers
from tests.support.world import KEY, World, write_world


@pytest.fixture(scope="module")
def served_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from defensemble_server import ServeOptions, serve

    folder = write_world(tmp_path_factory.mktemp("edited") / "repository")
    with serve(folder, ServeOptions(http_port=0, grpc_port=0, metrics_port=0, drain_s=1, admin_key=KEY)) as server:
        yield World(folder, server, content(folder))
    assert leftovers(folder) == []


@pytest.fixture
def world(served_world: World) -> Iterator[World]:
    """A server and its repository, restored after each test."""
    yield served_world
    served_world.restore()


@pytest.fixture(params=["grpc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ensembles(world: World, kind: str) -> Iterator[Ensembles]:
    """An editor over either protocol."""
    with world.client(kind) as client:
        yield Ensembles(world.folder, client)
