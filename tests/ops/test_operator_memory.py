"""The memory of kernels: sessions that end give it back, and runs do not take more."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.ops.test_operator_programs import EXAMPLE
from tests.support.operator_programs import model_of, session_of

pytestmark = pytest.mark.slow


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_sessions_that_end_give_their_memory_back() -> None:
    content = model_of(EXAMPLE).SerializeToString()
    images = EXAMPLE.images(17)

    def use(count: int) -> int:
        for _ in range(count):
            session_of(content).run(None, {"images": images})
        return resident_bytes()

    one = session_of(content)
    one.run(None, {"images": images})
    before = use(10)  # the allocator's own caches are full then
    assert use(50) - before < 8 << 20  # kernels that leaked would keep 0.4 MB of weights and tables each, and workspaces 2 MB


def test_runs_do_not_take_more_memory() -> None:
    session = session_of(model_of(EXAMPLE), threads=2)
    batches = [EXAMPLE.images(batch) for batch in (1, 4, 8, 16, 33)]

    def use(count: int) -> int:
        for _ in range(count):
            for images in batches:
                session.run(None, {"images": images})
        return resident_bytes()

    before = use(20)
    assert use(100) - before < 4 << 20
