from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.reports.browser import launched_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser
