"""One process that edits, for all edits of a module that are cut short."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.walking import Cutter


@pytest.fixture(scope="module")
def cutter() -> Iterator[Cutter]:
    process = Cutter()
    yield process
    process.close()
