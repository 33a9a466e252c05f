"""A real Triton behind a proxy that delays, cuts, resets, truncates, corrupts, stalls, refuses or answers by itself.

Each call ends in its error or in numpy's answer within its deadline, the client is fit for the next call, and no socket is left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from defensemble import (
    Client,
    ConnectionFailedError,
    DeadlineExceededError,
    InputError,
    NotReadyError,
    RequestRefusedError,
    RetriesExhaustedError,
    RetryPolicy,
    ServerFailedError,
    ServiceError,
)
from tests.support.clients import HTTP_KIND, KINDS, TWO_KINDS, client_of, url_of
from tests.support.tcp_proxy import Fault, TcpProxy, answer, corrupt, cut, delay, drip, proxied, replace, reset, stall, substitute
from tests.support.tiny import Array, images, logits, softmax

if TYPE_CHECKING:
    from defensemble_server import Server

MARGIN_S = 1.0  # a busy machine
ONCE = RetryPolicy(max_retries=0)
QUICK = RetryPolicy(initial_backoff_s=0.01)
BATCH = images(5)
EXPECTED = softmax(logits(1, BATCH)) * 0.25 + softmax(logits(2, BATCH)) * 0.75
LOST = (ConnectionFailedError, NotReadyError)  # gRPC has one code for both
HTML = "Content-Type: text/html\r\n"


def is_right(probabilities: Array) -> bool:
    return probabilities.shape == EXPECTED.shape and bool(np.abs(probabilities - EXPECTED).max() < 1e-6)


@dataclass
class Setting:
    """A client, the proxy in front of its server, and the protocol."""

    client: Client
    proxy: TcpProxy
    protocol: str

    def outcome(self, fault: Fault | None = None, timeout_s: float = 5.0) -> type[ServiceError] | None:
        """Call the model under a fault. Returns the class of the error, None for the right answer; neither may be late."""
        self.proxy.inject(*([] if fault is None else [fault]))
        started = time.monotonic()
        try:
            assert is_right(self.client.predict(BATCH, timeout_s=timeout_s).probabilities)
            return None
        except ServiceError as error:
            return type(error)
        finally:
            assert time.monotonic() - started < timeout_s + MARGIN_S

    def recovers(self) -> bool:
        """Whether a call succeeds again, without a retry of its own, once gRPC has made a new connection."""
        deadline = time.monotonic() + 5
        while self.outcome() is not None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return True


@contextmanager
def setting_of(kind: str, triton: Server, retry: RetryPolicy = ONCE, seed: int = 0, closed_within_s: float = 3.0) -> Iterator[Setting]:
    """Yield a client of a proxy, whose sockets are all closed at the end."""
    with proxied(url_of(kind, triton), seed) as proxy:
        with client_of(kind, url_of(kind, triton, proxy.port), "ensemble", timeout_s=20, retry=retry) as client:
            yield Setting(client, proxy, kind.split()[-1])
        proxy.assert_no_socket_left(closed_within_s)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


# Offsets are in the response: with HTTP of the head, with gRPC of frames.
LOSSES = {
    "cut": cut(),
    "cut early": cut(20),
    "truncated": cut(150),
    "reset": reset(),
    "reset before the request": reset(0, "up"),
    "reset in the request": reset(90, "up"),
    "reset in the response": reset(150),
}


@pytest.mark.parametrize("kind", TWO_KINDS)
def test_a_lost_connection_is_an_error_without_retries_and_none_with_them(kind: str, triton: Server) -> None:
    with setting_of(kind, triton) as once, setting_of(kind, triton, QUICK) as quick:
        assert once.outcome() is quick.outcome() is None
        for name, fault in LOSSES.items():
            kinds = LOST if once.protocol == "grpc" else (ConnectionFailedError,)
            outcome = once.outcome(fault)
            assert outcome in kinds, (name, outcome)
            assert once.recovers()
            retries = quick.client.counters.retries
            assert quick.outcome(fault) is None, name
            assert quick.client.counters.retries > retries
            assert quick.recovers()
        assert len(once.proxy.taken) == len(quick.proxy.taken) == len(LOSSES)


@pytest.mark.parametrize("kind", HTTP_KIND)  # a gRPC client waits for its calls when it closes, against Triton before 2.59
def test_a_slow_response_is_right_and_a_missing_one_ends_at_the_deadline(kind: str, triton: Server) -> None:
    with setting_of(kind, triton, QUICK) as setting:
        assert setting.outcome() is None
        assert setting.outcome(delay(0.05)) is None
        started = time.monotonic()
        assert setting.outcome(stall(), timeout_s=0.1) is DeadlineExceededError
        assert time.monotonic() - started >= 0.1
        assert setting.protocol == "grpc" or setting.outcome() is None
        assert setting.outcome(drip(0.01), timeout_s=0.1) is DeadlineExceededError, "whatever still comes"
        assert setting.client.counters.retries == 0, "a deadline is never retried"


@pytest.mark.parametrize("kind", TWO_KINDS)
def test_a_response_with_changed_bytes_is_an_error(kind: str, triton: Server) -> None:
    with setting_of(kind, triton, QUICK) as setting:
        with client_of(kind, url_of(kind, triton), "ensemble") as direct:
            first = direct.predict(BATCH).probabilities[0].tobytes()
        nan = np.full(1, np.nan, np.float32).tobytes()
        faults = [
            substitute(b"FP32", b"FP64"),
            substitute(b"FP32", b"FP99"),
            substitute(b"probabilities", b"probabilitie_"),
            substitute(first[:4], nan),
        ]
        if setting.protocol == "http":
            faults += [
                replace(b"HTTQ/9.9"),
                replace(b"HTTP/1.1 2x0"),
                substitute(b"[5,3]", b"[3,5]"),
                substitute(b"[5,3]", b"[5,9]"),
                substitute(b'"shape"', b'"shapf"'),
                substitute(b'"datatype":', b'"datatype" '),
                substitute(b'"binary_data_size":60', b'"binary_data_size":56'),
                substitute(b'"binary_data_size":60', b'"binary_data_size":-6'),
            ]
        assert setting.outcome() is None
        for fault in faults:
            assert setting.outcome(fault) is ServerFailedError, fault
            assert setting.recovers()
        assert len(setting.proxy.taken) == len(faults)
        assert setting.client.counters.retries == 0


@pytest.mark.slow
def test_a_response_with_any_bytes_changed_is_never_a_late_or_malformed_answer(kind: str, triton: Server) -> None:
    generator = np.random.default_rng(1)
    with setting_of(kind, triton, closed_within_s=5) as setting:
        assert setting.outcome() is None
        for _ in range(150):
            after, count = (int(value) for value in generator.integers((0, 1), (420, 9)))
            setting.proxy.inject(corrupt(after, count))
            started = time.monotonic()
            try:
                probabilities = setting.client.predict(BATCH, timeout_s=0.3).probabilities
                # TCP does not notice values that a proxy has changed.
                assert probabilities.shape == EXPECTED.shape
                assert np.isfinite(probabilities).all()
            except (ServiceError, InputError):  # changed metadata describe a model that may not classify images
                pass
            assert time.monotonic() - started < 0.3 + MARGIN_S


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "async http"])
def test_http_with_a_corrupted_head_never_gives_a_wrong_answer(kind: str, triton: Server) -> None:
    generator = np.random.default_rng(2)
    outcomes = []
    with setting_of(kind, triton) as setting:
        assert setting.outcome() is None
        for after in range(0, 250):
            fault = corrupt(after, int(generator.integers(1, 3)))
            outcomes.append(setting.outcome(fault, timeout_s=0.2))
            assert setting.recovers()
    assert set(outcomes) > {None, ServerFailedError}, "unused headers do not matter, others do"
    assert outcomes.count(ServerFailedError) > 50


@pytest.mark.slow
@pytest.mark.parametrize("fault", [stall(), stall(0, "up"), stall(20), stall(150)])
def test_a_silent_connection_is_replaced_by_another(kind: str, triton: Server, fault: Fault) -> None:
    with setting_of(kind, triton, QUICK, closed_within_s=5) as setting:
        assert setting.outcome() is None
        assert setting.outcome(fault, timeout_s=0.3) is DeadlineExceededError
        if setting.protocol == "http":
            assert setting.outcome() is None
        began = time.monotonic()
        while setting.outcome(timeout_s=0.3) is not None:  # gRPC uses a connection until it was silent for 5 s
            assert time.monotonic() - began < 10
        assert len(setting.proxy.taken) == 1


@pytest.mark.slow
def test_a_server_that_accepts_and_never_answers_costs_the_deadline(kind: str, triton: Server) -> None:
    # gRPC keeps the socket of a connection without a handshake for up to 20 s after the channel is closed.
    with setting_of(kind, triton, QUICK, closed_within_s=25) as setting:
        assert setting.outcome(stall(), timeout_s=0.3) is DeadlineExceededError


@pytest.mark.parametrize("kind", ["http", "async http"])
@pytest.mark.parametrize(
    ("fault", "error", "is_retried"),
    [
        (answer("502 Bad Gateway", b"<html>gone</html>", HTML), ConnectionFailedError, True),
        (answer("503 Service Unavailable"), NotReadyError, True),
        (answer("429 Too Many Requests"), NotReadyError, True),
        (answer("504 Gateway Timeout"), DeadlineExceededError, True),
        (answer("308 Permanent Redirect", headers="Location: https://example.org/v2\r\n"), RequestRefusedError, False),
        (answer("200 OK", b"<html>log in</html>", HTML), ServerFailedError, False),
        (answer("200 OK", b"{}", "Content-Type: application/json\r\n"), ServerFailedError, False),
        (answer("500 Internal Server Error", b"{}"), ServerFailedError, False),
    ],
)
def test_responses_of_a_proxy(kind: str, triton: Server, fault: Fault, error: type[ServiceError], is_retried: bool) -> None:
    with setting_of(kind, triton) as once, setting_of(kind, triton, QUICK) as quick:
        assert once.outcome() is quick.outcome() is None
        exchanges = quick.proxy.exchanges
        assert once.outcome(fault) is error
        assert quick.outcome(fault) is (None if is_retried else error)
        assert quick.proxy.exchanges - exchanges == 1 + is_retried
        assert quick.client.counters.retries == is_retried
        assert once.recovers()


@pytest.mark.parametrize("kind", ["grpc", pytest.param("async grpc", marks=pytest.mark.slow)])
def test_a_web_server_on_the_grpc_port(kind: str, triton: Server) -> None:
    for fault in (answer("502 Bad Gateway", b"<html>gone</html>", HTML), answer("308 Permanent Redirect"), answer("200 OK", b"hi", HTML)):
        with setting_of(kind, triton) as setting:
            setting.proxy.always = fault
            assert setting.outcome() in (ConnectionFailedError, ServerFailedError)  # before or after gRPC has sent the call
            setting.proxy.always = None
            assert setting.recovers()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWO_KINDS)
def test_refused_connections_are_an_error_after_all_attempts(kind: str, triton: Server) -> None:
    with setting_of(kind, triton, QUICK) as quick, setting_of(kind, triton) as once:
        with quick.proxy.refusing(), once.proxy.refusing():
            assert once.outcome() is ConnectionFailedError
            with pytest.raises(RetriesExhaustedError) as caught:
                quick.client.predict(BATCH)
            assert len(caught.value.attempts) == 1 + QUICK.max_retries
            assert {type(attempt.error) for attempt in caught.value.attempts} == {ConnectionFailedError}
        assert quick.recovers()
        assert once.recovers()


@pytest.mark.parametrize("fault", [cut(), reset(0, "up"), replace(b"XXXXXXXXX")])
def test_a_first_connection_that_fails(kind: str, triton: Server, fault: Fault) -> None:
    with setting_of(kind, triton) as setting:
        # gRPC may connect again within the call.
        assert setting.outcome(fault) in (
            ConnectionFailedError,
            ServerFailedError,
            *((NotReadyError, None) if setting.protocol == "grpc" else ()),
        )
        assert len(setting.proxy.taken) == 1
        assert setting.recovers()
