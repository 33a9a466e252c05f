"""Ports for pages whose commands start servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.pages import Ports, free_ports, stop_server_on


@pytest.fixture
def ports() -> Iterator[Ports]:
    """Three free ones; what a page has left running there is stopped."""
    chosen = free_ports()
    yield chosen
    stop_server_on(chosen)
