"""One process per module that runs edits and injects faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.walking import EditProcess


@pytest.fixture(scope="module")
def edit_process() -> Iterator[EditProcess]:
    process = EditProcess()
    yield process
    process.close()
