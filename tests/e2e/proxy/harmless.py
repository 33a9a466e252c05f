"""Whether a server is unharmed: the same process, the same answers, no more memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.common.nginx import Nginx
from benchmarks.common.processes import pss_bytes
from defensemble import Client
from defensemble_server import Server
from tests.support import tiny

_MEBIBYTE = 1 << 20


@contextmanager
def unharmed(server: Server, nginx: Nginx, grows_mib: float = 32.0) -> Iterator[None]:
    """Fail unless server and proxy are the same processes after the block, have not grown, and answer through both protocols.

    Args:
        server: The server.
        nginx: The proxy in front of it.
        grows_mib: Growth of the memory of each of the two that is no harm, in MiB. A Triton that has answered little grows by up to 8
            MiB while it answers; each of the bodies that these tests send leaves 287 MB or more where it does harm.
    """
    assert_answers(nginx)
    processes, memory, events = _processes(server, nginx), _memory_mib(server, nginx), server.events()
    yield
    assert_answers(nginx)
    assert _processes(server, nginx) == processes
    assert server.events() == events
    grown = [after - before for before, after in zip(memory, _memory_mib(server, nginx), strict=True)]
    assert max(grown) < grows_mib, f"Triton and nginx have grown by {grown} MiB"


def _processes(server: Server, nginx: Nginx) -> list[int]:
    return [server.triton_pid, *nginx.worker_pids()]


def _memory_mib(server: Server, nginx: Nginx) -> tuple[float, float]:
    return pss_bytes(server.triton_pid) / _MEBIBYTE, sum(map(pss_bytes, nginx.worker_pids())) / _MEBIBYTE


def assert_answers(nginx: Nginx) -> None:
    """Fail unless `ensemble` gives the average of `alpha` and `beta`, weights 1 and 3, through the proxy."""
    images = tiny.images(2)
    expected = (tiny.softmax(tiny.logits(1, images)) + 3 * tiny.softmax(tiny.logits(2, images))) / 4
    for url in (nginx.http_url, nginx.grpc_url):
        with Client(url, model="ensemble") as client:
            np.testing.assert_allclose(client.predict(images).probabilities, expected, rtol=0, atol=1e-5)
