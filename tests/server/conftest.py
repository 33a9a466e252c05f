"""A repository of one test's own, of which no server is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    folder = tiny.write_repository(tmp_path / "repository")
    yield folder
    deadline = time.monotonic() + 20
    while (left := tiny.leftovers(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
