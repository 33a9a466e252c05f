"""Which failures are sent again, how often, and when."""

from __future__ import annotations

import gc
import pickle
import time
import weakref
from typing import Any

import pytest
from hypothesis import given, strategies as st

from defensemble import (
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    GrpcTransport,
    HttpTransport,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    OutputRequest,
    RequestRefusedError,
    RetriesExhaustedError,
    RetryPolicy,
    ServerFailedError,
    ServiceError,
)
from defensemble._client.retries import RetryBudget
from tests.support.facts import raises
from tests.support.flaky import FlakyTransport
from tests.support.scripted import free_port
from tests.support.tiny import images

AT_ONCE = RetryPolicy(initial_backoff_s=0)


def client_of(*failures: ServiceError | None, policy: RetryPolicy = AT_ONCE, **options: Any) -> tuple[Client, FlakyTransport]:
    transport = FlakyTransport([None, *failures])  # the first inference is the look-up
    return Client("fake", transport=transport, retry=policy, **options), transport


def gateway_timeout() -> DeadlineExceededError:
    error = DeadlineExceededError("HTTP 504")
    error.is_retryable = True
    return error


@pytest.mark.parametrize(
    "failure", [ConnectionFailedError("reset"), NotReadyError("busy"), gateway_timeout()], ids=lambda e: type(e).__name__
)
def test_what_may_succeed_later_is_sent_again(failure: ServiceError) -> None:
    client, transport = client_of(failure, failure)
    assert len(client.predict(images(3))) == 3
    assert transport.attempts == 1 + 3
    assert client.counters.retries == 2
    assert client.counters.failures == 2


@pytest.mark.parametrize("kind", [DeadlineExceededError, ForbiddenError, ModelNotFoundError, RequestRefusedError, ServerFailedError])
def test_nothing_else_is_sent_again(kind: type[ServiceError]) -> None:
    client, transport = client_of(kind("no"))
    with pytest.raises(kind, match="no"):
        client.predict(images(1))
    assert transport.attempts == 2
    assert client.counters.retries == 0


def test_invalid_input_is_not_sent() -> None:
    client, transport = client_of()
    client.describe()
    with pytest.raises(InputError):
        client.predict(images(1) + 2)
    assert transport.attempts == 1


def test_the_last_error_lists_the_attempts_and_pickles() -> None:
    client, transport = client_of(
        *[NotReadyError(f"busy {n}") for n in range(9)], policy=RetryPolicy(max_retries=2, initial_backoff_s=0.001)
    )
    with raises(RetriesExhaustedError, "busy 2 | 3 times") as caught:
        client.predict(images(1))
    assert transport.attempts == 1 + 3
    copy = pickle.loads(pickle.dumps(caught.value))
    assert [(attempt.url, str(attempt.error)) for attempt in copy.attempts] == [("fake://server", f"busy {n}") for n in range(3)]
    assert str(copy) == str(caught.value)
    assert isinstance(caught.value.__cause__, NotReadyError)
    starts = [attempt.started_s for attempt in caught.value.attempts]
    assert starts == sorted(starts)


def test_without_retries_the_error_is_the_servers() -> None:
    client, transport = client_of(NotReadyError("busy"), policy=RetryPolicy(max_retries=0))
    with pytest.raises(NotReadyError, match="busy"):
        client.predict(images(1))
    assert transport.attempts == 2


@pytest.mark.parametrize("count", [1, 20])
def test_images_leave_the_memory_after_a_failed_call(count: int) -> None:
    client, transport = client_of()
    client.describe()
    transport.down = lambda: NotReadyError("busy")
    batch = images(count)
    kept = weakref.ref(batch)
    gc.disable()  # what only the garbage collector frees stays for long, since it counts objects and not bytes
    try:
        with pytest.raises(RetriesExhaustedError):
            client.predict(batch)
        del batch
        deadline = time.monotonic() + 5
        while kept() is not None:  # threads of other chunks may still run
            assert time.monotonic() < deadline
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [HttpTransport, GrpcTransport])
def test_images_leave_the_memory_after_a_failed_connection(kind: type[HttpTransport | GrpcTransport]) -> None:
    transport = kind(f"{'http' if kind is HttpTransport else 'grpc'}://127.0.0.1:{free_port()}")
    batch = images(1)
    kept = weakref.ref(batch)
    gc.disable()
    try:
        with pytest.raises(ConnectionFailedError):
            transport.infer("alpha", {"images": batch}, [OutputRequest("logits")], 5)
        del batch
        assert kept() is None
    finally:
        gc.enable()
        transport.close()


def test_retries_end_with_the_deadline() -> None:
    failures = [NotReadyError("busy") for _ in range(1000)]
    policy = RetryPolicy(max_retries=1000, initial_backoff_s=0.02, max_backoff_s=0.02, reserve=1000)
    client, transport = client_of(*failures, policy=policy)
    client.describe()
    started = time.monotonic()
    with pytest.raises((RetriesExhaustedError, DeadlineExceededError), match="busy"):
        client.predict(images(1), timeout_s=0.2)
    assert time.monotonic() - started < 1
    assert transport.attempts > 3


def test_retry_after_is_respected_inside_the_deadline() -> None:
    busy = NotReadyError("busy")
    busy.retry_after_s = 0.1
    client, _ = client_of(busy)
    client.describe()
    started = time.monotonic()
    client.predict(images(1))
    assert time.monotonic() - started >= 0.1
    busy.retry_after_s = 30.0
    client, transport = client_of(busy, timeout_s=5)
    started = time.monotonic()
    with pytest.raises(RetriesExhaustedError):
        client.predict(images(1))
    assert time.monotonic() - started < 1, "it does not wait for what would come too late"
    assert transport.attempts == 2


def test_the_budget_limits_the_retries_of_a_failing_server() -> None:
    policy = RetryPolicy(initial_backoff_s=0, budget=0.1, reserve=5)
    client, transport = client_of(*[NotReadyError("busy") for _ in range(1000)], policy=policy)
    client.describe()
    calls = 200
    for _ in range(calls):
        with pytest.raises(RetriesExhaustedError):
            client.predict(images(1))
    extra = transport.attempts - 1 - calls
    assert extra == client.counters.retries
    assert 0.1 * calls - 1 <= extra <= 0.1 * (calls + 4) + 5  # the look-up is of four requests


@given(st.integers(0, 20), st.floats(0, 1), st.lists(st.booleans(), max_size=300))
def test_a_budget_never_exceeds_its_share(reserve: int, share: float, events: list[bool]) -> None:
    budget = RetryBudget(RetryPolicy(budget=share, reserve=reserve))
    requests = retries = 0
    for is_retry in events:
        if is_retry:
            retries += budget.take_retry()
        else:
            requests += 1
            budget.add_request()
        assert retries <= reserve + share * requests + 1e-6


@given(st.integers(0, 2000), st.floats(0, 10), st.floats(0, 10))
def test_backoffs_have_full_jitter_below_an_exponential_limit(retry: int, first_s: float, longest_s: float) -> None:
    policy = RetryPolicy(initial_backoff_s=first_s, max_backoff_s=longest_s)
    assert 0 <= policy.backoff_s(retry) <= min(longest_s, first_s * 2.0 ** min(retry, 60))


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"max_retries": -1}, "max_retries | -1"),
        ({"max_retries": 1.5}, "max_retries | 1.5"),
        ({"budget": float("nan")}, "budget | nan"),
        ({"initial_backoff_s": float("inf")}, "initial_backoff_s | inf"),
        ({"max_backoff_s": "1"}, "max_backoff_s | '1'"),
        ({"reserve": True}, "reserve | True"),
        ({"reserve": 10**400}, "reserve | 1e+09"),
        ({"budget": 10**400}, "budget | 1e+09"),
    ],
)
def test_a_policy_rejects_invalid_values(options: dict[str, Any], facts: str) -> None:
    with raises(InputError, facts):
        RetryPolicy(**options)


def test_a_client_rejects_what_is_no_policy() -> None:
    with raises(InputError, "RetryPolicy | int 3"):
        Client("fake", transport=FlakyTransport(), retry=3)  # type: ignore[arg-type]
