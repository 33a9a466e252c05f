from __future__ import annotations

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
from defensemble._transport.error_mapping import _BY_GRPC_CODE, error_from_grpc, error_from_http, error_from_os
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
def test_urls(url: str, expected: str) -> None:
    assert address_from_url(url).url == expected


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8001", "scheme | localhost:8001"),
        ("", "scheme | ''"),
        ("ftp://localhost", "unknown scheme | 'ftp'"),
        ("grpc://", "no host"),
        ("http://localhost:port", "cannot be read"),
        ("http://localhost:99999", "cannot be read"),
        ("more than scheme, host and port", "more than scheme, host and port"),
        ("http://user@localhost", "more than scheme, host and port"),
        (8001, "str | int"),
    ],
)
def test_urls_that_are_none(url: str, told: str) -> None:
    with raises(InputError, told) as caught:
        transport_from_url(url)
    assert_facts(str(caught.value), "http://HOST:PORT | https://HOST:PORT | grpc://HOST:PORT | grpcs://HOST:PORT")


def test_a_transport_is_chosen_by_scheme() -> None:
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
def test_grpc_codes(code: str, kind: type[ServiceError]) -> None:
    error = error_from_grpc(code, "its words", "grpc://here, asked something", alive=lambda: pytest.fail("need not ask"))
    assert type(error) is kind
    assert str(error).startswith(f"grpc://here, asked something: {code}, 'its words'. ")


def test_unavailable_is_told_apart_by_asking() -> None:
    assert type(error_from_grpc("UNAVAILABLE", None, "what", alive=lambda: True)) is NotReadyError
    assert type(error_from_grpc("UNAVAILABLE", None, "what", alive=lambda: False)) is ConnectionFailedError


def test_grpc_codes_have_real_names() -> None:
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
def test_http_statuses(status: int, kind: type[ServiceError]) -> None:
    error = error_from_http(status, "its words", "http://here")
    assert type(error) is kind
    assert f"HTTP {status}, 'its words'" in str(error)


def test_socket_errors() -> None:
    assert type(error_from_os(TimeoutError("x"), "what")) is DeadlineExceededError
    assert type(error_from_os(ConnectionRefusedError(111, "refused"), "what")) is ConnectionFailedError
    assert "refused" in str(error_from_os(ConnectionRefusedError(111, "refused"), "what"))
