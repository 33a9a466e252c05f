"""Retries against a real Triton behind proxies that fail some calls: counted where they arrive."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from defensemble import (
    Client,
    DeadlineExceededError,
    ForbiddenError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    RetriesExhaustedError,
    RetryPolicy,
    ServerFailedError,
    ServiceError,
)
from tests.support.clients import HTTP_KIND, KINDS, client_of, url_of
from tests.support.grpc_proxy import grpc_proxied
from tests.support.tcp_proxy import answer, proxied
from tests.support.tiny import images, logits, softmax

if TYPE_CHECKING:
    from defensemble_server import Server

BATCH = images(4)
EXPECTED = softmax(logits(1, BATCH))
POLICY = RetryPolicy(max_retries=3, initial_backoff_s=0.001)
STATUS_BY_GRPC_CODE = {"UNAVAILABLE": 503, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "PERMISSION_DENIED": 403, "INTERNAL": 500}


@dataclass
class Flaky:
    """A client, and how a test fails its calls and counts those that arrive."""

    client: Client
    url: str
    fail: Callable[[str, int], None]
    """Answer the next calls with a gRPC code, or the HTTP status that means the same; as many as the number."""
    received: Callable[[], int]

    def is_right(self) -> bool:
        return bool(np.abs(self.client.predict(BATCH).probabilities - EXPECTED).max() < 1e-6)


@contextmanager
def flaky(kind: str, triton: Server, policy: RetryPolicy | None = POLICY) -> Iterator[Flaky]:
    url = url_of(kind, triton)
    if kind.endswith("http"):
        with proxied(url) as proxy, client_of(kind, url_of(kind, triton, proxy.port), "alpha", timeout_s=10, retry=policy) as client:

            def fail(code: str, count: int) -> None:
                proxy.inject(*[answer(f"{STATUS_BY_GRPC_CODE[code]} Failed")] * count)

            client.describe()
            yield Flaky(client, client.url, fail, lambda: proxy.exchanges)
    else:
        with grpc_proxied(url) as front, client_of(kind, url_of(kind, triton, front.port), "alpha", timeout_s=10, retry=policy) as client:
            client.describe()
            yield Flaky(
                client,
                client.url,
                lambda code, count: front.infer_statuses.extend([code] * count),
                lambda: front.calls.count("ModelInfer"),
            )


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_fails_the_first_calls_is_called_until_it_succeeds(kind: str, triton: Server) -> None:
    with flaky(kind, triton) as server:
        for failures in range(POLICY.max_retries + 1):
            received, before = server.received(), server.client.counters
            server.fail("UNAVAILABLE", failures)
            assert server.is_right()
            counters = server.client.counters
            assert server.received() - received == counters.requests - before.requests == failures + 1
            assert counters.retries - before.retries == counters.failures - before.failures == failures
        received = server.received()
        server.fail("UNAVAILABLE", POLICY.max_retries + 1)
        with pytest.raises(RetriesExhaustedError) as caught:
            server.client.predict(BATCH)
        assert server.received() - received == POLICY.max_retries + 1
        for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
            assert str(error) == str(caught.value)
            assert [(attempt.url, type(attempt.error)) for attempt in error.attempts] == [(server.url, NotReadyError)] * 4
            started = [attempt.started_s for attempt in error.attempts]
            assert 0 <= started[0] < started[1] < started[2] < started[3] < 10
            assert [str(attempt.error) for attempt in error.attempts] == [str(attempt.error) for attempt in caught.value.attempts]
        assert isinstance(caught.value.__cause__, NotReadyError)
        assert server.is_right()


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_attempt_cannot_change_is_sent_once(kind: str, triton: Server) -> None:
    errors = {
        "INVALID_ARGUMENT": RequestRefusedError,
        "NOT_FOUND": ModelNotFoundError,
        "PERMISSION_DENIED": ForbiddenError,
        "INTERNAL": ServerFailedError,
    }
    with flaky(kind, triton) as server:
        for code, error in errors.items():
            server.client.describe()  # after a refusal the client looks the model up again
            received = server.received()
            server.fail(code, 1)
            with pytest.raises(error) as caught:
                server.client.predict(BATCH)
            assert type(caught.value) is error
            assert server.received() - received == 1
        received = server.received()
        with pytest.raises(InputError):
            server.client.predict(BATCH.astype(np.float64) * 300)
        assert server.received() == received
        with pytest.raises(ModelNotFoundError):
            server.client.predict(BATCH, model="nothing")
        assert server.client.counters.retries == 0


@pytest.mark.parametrize("kind", KINDS)
def test_without_retries_the_error_is_the_servers(kind: str, triton: Server) -> None:
    with flaky(kind, triton, RetryPolicy(max_retries=0)) as server:
        received = server.received()
        server.fail("UNAVAILABLE", 1)
        with pytest.raises(NotReadyError):
            server.client.predict(BATCH)
        assert server.received() - received == 1
        assert server.is_right()


@pytest.mark.parametrize("kind", HTTP_KIND)
def test_retries_of_a_failing_server_stay_within_the_budget(kind: str, triton: Server) -> None:
    policy = RetryPolicy(max_retries=3, initial_backoff_s=0.0, budget=0.1, reserve=5)
    calls = 60
    with flaky(kind, triton, policy) as server:
        received, requests = server.received(), server.client.counters.requests
        server.fail("UNAVAILABLE", 10 * calls)
        for _ in range(calls):
            with pytest.raises(RetriesExhaustedError):
                server.client.predict(BATCH)
        extra = server.received() - received - calls
        # Each request, that of the look-up before included, earns a tenth of a retry.
        assert extra == server.client.counters.retries
        assert calls // 10 <= extra <= policy.reserve + policy.budget * (calls + requests)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "async http"])
def test_a_retry_waits_as_long_as_the_server_asks(kind: str, triton: Server) -> None:
    with (
        proxied(url_of(kind, triton)) as proxy,
        client_of(kind, url_of(kind, triton, proxy.port), "alpha", timeout_s=20, retry=POLICY) as client,
    ):
        client.describe()
        proxy.inject(answer("503 Busy", headers="Retry-After: 1\r\n"))
        started = time.monotonic()
        assert len(client.predict(BATCH)) == 4
        assert 1.0 <= time.monotonic() - started < 5


@pytest.mark.parametrize("kind", ["http", "async http"])
def test_a_retry_that_the_server_asks_for_after_the_deadline_is_not_waited_for(kind: str, triton: Server) -> None:
    with (
        proxied(url_of(kind, triton)) as proxy,
        client_of(kind, url_of(kind, triton, proxy.port), "alpha", timeout_s=20, retry=POLICY) as client,
    ):
        client.describe()
        exchanges, started = proxy.exchanges, time.monotonic()
        proxy.inject(answer("503 Busy", headers="Retry-After: 30\r\n"))
        with pytest.raises(RetriesExhaustedError) as caught:
            client.predict(BATCH, timeout_s=10)
        assert time.monotonic() - started < 5
        assert caught.value.attempts[0].error.retry_after_s == 30
        assert proxy.exchanges - exchanges == 1


@pytest.mark.parametrize("kind", ["http", "async http"])
def test_the_deadline_bounds_all_attempts_together(kind: str, triton: Server) -> None:
    policy = RetryPolicy(max_retries=1000, initial_backoff_s=0.02, max_backoff_s=0.02, reserve=1000)
    with (
        proxied(url_of(kind, triton)) as proxy,
        client_of(kind, url_of(kind, triton, proxy.port), "alpha", timeout_s=20, retry=policy) as client,
    ):
        client.describe()
        proxy.always = answer("503 Busy")
        started = time.monotonic()
        with pytest.raises((RetriesExhaustedError, DeadlineExceededError)) as caught:
            client.predict(BATCH, timeout_s=0.2)
        assert 0.15 < time.monotonic() - started < 1.2
        assert isinstance(caught.value, ServiceError)
        assert len(proxy.taken) >= 3
