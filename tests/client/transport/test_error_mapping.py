from __future__ import annotations

import pickle
import socket
import ssl
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import grpc  # type: ignore[import-untyped]
import pytest

from defensemble import (
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    GrpcTransport,
    HttpTransport,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)
from defensemble._transport.address import address_from_url
from defensemble._transport.error_mapping import (
    _BY_GRPC_CODE,
    call_context,
    error_from_connect,
    error_from_grpc,
    error_from_http,
    error_from_os,
)
from defensemble._transport.factory import transport_from_url
from tests.support.facts import assert_facts, raises


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://localhost", "grpc://localhost:8001"),
        ("grpcs://triton.example", "grpcs://triton.example:8001"),
        ("http://localhost/", "http://localhost:8000"),
        ("https://[::1]:9", "https://[::1]:9"),
        ("HTTP://LocalHost:7", "http://localhost:7"),
    ],
)
def test_addresses_are_parsed_from_urls(url: str, expected: str) -> None:
    assert address_from_url(url).url == expected


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("localhost:8001", "scheme | localhost:8001"),
        ("", "scheme | ''"),
        ("ftp://localhost", "unknown scheme | 'ftp'"),
        ("grpc://", "no host"),
        ("http://localhost:port", "cannot be parsed"),
        ("http://localhost:99999", "cannot be parsed"),
        ("http://localhost/v2", "more than scheme, host and port"),
        ("http://user@localhost", "more than scheme, host and port"),
        (8001, "str | int"),
    ],
)
def test_invalid_urls_are_rejected(url: str, facts: str) -> None:
    with raises(InputError, facts) as caught:
        transport_from_url(url)
    assert_facts(str(caught.value), "http://HOST:PORT | https://HOST:PORT | grpc://HOST:PORT | grpcs://HOST:PORT")


def test_the_scheme_selects_the_transport() -> None:
    for url, kind in (("grpc://localhost", GrpcTransport), ("http://localhost", HttpTransport), ("https://localhost", HttpTransport)):
        transport = transport_from_url(url)
        assert type(transport) is kind
        assert transport.url.startswith(url)
        assert url in repr(transport)
        transport.close()
    with pytest.raises(InputError, match="HttpTransport"):
        GrpcTransport("http://localhost")
    with pytest.raises(InputError, match="GrpcTransport"):
        HttpTransport("grpc://localhost")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("NOT_FOUND", ModelNotFoundError),
        ("INVALID_ARGUMENT", RequestRefusedError),
        ("DEADLINE_EXCEEDED", DeadlineExceededError),
        ("PERMISSION_DENIED", ForbiddenError),
        ("INTERNAL", ServerFailedError),
        ("UNKNOWN", ServerFailedError),
    ],
)
def test_grpc_codes_map_to_error_classes(code: str, kind: type[ServiceError]) -> None:
    context = call_context("grpc://here", "run model", "m")
    error = error_from_grpc(code, "the reason", context, unreachable=lambda: pytest.fail("needs no other call"))
    assert type(error) is kind
    reason = "timed out" if code == "DEADLINE_EXCEEDED" else f"{code}, 'the reason'"
    assert str(error).startswith(f"cannot run model 'm' on grpc://here: {reason}. ")


def test_unavailable_means_not_ready_only_if_the_server_is_alive() -> None:
    lost = ConnectionFailedError("lost")
    assert type(error_from_grpc("UNAVAILABLE", None, "context", unreachable=lambda: None)) is NotReadyError
    assert error_from_grpc("UNAVAILABLE", None, "context", unreachable=lambda: lost) is lost


def test_mapped_grpc_codes_exist() -> None:
    assert set(_BY_GRPC_CODE) < {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RequestRefusedError),
        (401, ForbiddenError),
        (403, ForbiddenError),
        (404, ModelNotFoundError),
        (413, RequestRefusedError),
        (429, NotReadyError),
        (500, ServerFailedError),
        (502, ConnectionFailedError),
        (503, NotReadyError),
        (504, DeadlineExceededError),
        (302, ServerFailedError),
    ],
)
def test_http_statuses_map_to_error_classes(status: int, kind: type[ServiceError]) -> None:
    error = error_from_http(status, "the reason", "http://here")
    assert type(error) is kind
    assert f"HTTP {status}, 'the reason'" in str(error)


def test_socket_errors_map_to_error_classes() -> None:
    timed_out = error_from_os(TimeoutError("x"), "context")
    lost = error_from_os(ConnectionResetError(104, "Connection reset by peer"), "context")
    assert (type(timed_out), type(lost)) == (DeadlineExceededError, ConnectionFailedError)
    assert_facts(str(timed_out), "timed out | timeout_s")
    assert_facts(str(lost), "connection lost | connection reset by peer")


@pytest.mark.parametrize(
    ("error", "kind", "facts"),
    [
        (ConnectionRefusedError(111, "Connection refused"), ConnectionFailedError, "connection refused | defensemble serve"),
        (socket.gaierror(-2, "Name or service not known"), ConnectionFailedError, "the host name cannot be resolved | URL"),
        (TimeoutError("timed out"), DeadlineExceededError, "connection timed out"),
        (OSError(113, "No route to host"), ConnectionFailedError, "no route to host"),
        (ssl.SSLError(1, "wrong version number"), ConnectionFailedError, "TLS handshake failed"),
        (ssl.SSLCertVerificationError(), ConnectionFailedError, "certificate is not trusted | tls=TlsFiles"),
    ],
)
def test_connect_errors_state_a_plain_reason(error: OSError, kind: type[ServiceError], facts: str) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed certificate"
    translated = error_from_connect(error, "grpc://127.0.0.1:1")
    assert type(translated) is kind
    assert_facts(str(translated), f"cannot connect to grpc://127.0.0.1:1 | {facts}")
    assert "Errno" not in str(translated)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_some_http_statuses_are_retryable(status: int) -> None:
    error = error_from_http(status, "", "context")
    assert error.is_retryable
    assert pickle.loads(pickle.dumps(error)).is_retryable


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 500, 501])
def test_other_http_statuses_are_not_retryable(status: int) -> None:
    assert not error_from_http(status, "", "context", headers={b"retry-after": b"3"}).is_retryable


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"0", 0),
        (b" 17 ", 17),
        (b"Wed, 21 Oct 2015 07:28:00 GMT", 0),
        (b"Wed, 21 Oct 2015 07:28:00 -0000", 0),
        (b"-1", None),
        (b"soon", None),
        (b"", None),
        (b"1.5", None),
        ("²".encode("latin-1"), None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text: bytes, seconds: float | None) -> None:
    error = error_from_http(503, "", "context", headers={b"retry-after": text})
    assert error.retry_after_s == seconds
    assert pickle.loads(pickle.dumps(error)).retry_after_s == seconds


def test_retry_after_is_a_date_in_the_future() -> None:
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    error = error_from_http(503, "", "context", headers={b"retry-after": date.encode()})
    assert error.retry_after_s == pytest.approx(100, abs=5)


@pytest.mark.parametrize(
    ("error", "is_retryable"),
    [
        (ConnectionRefusedError(111, "Connection refused"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), True),
        (ssl.SSLError(1, "wrong version number"), False),
        (ssl.SSLCertVerificationError(), False),
        (TimeoutError("timed out"), False),
    ],
)
def test_lost_connections_are_retryable_and_failed_tls_is_not(error: OSError, is_retryable: bool) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed certificate"
    for translated in (error_from_connect(error, "http://here"), error_from_os(error, "context")):
        assert translated.is_retryable is is_retryable
