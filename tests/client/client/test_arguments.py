"""Arguments of the clients that name servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from defensemble import AsyncClient, Client, InputError, TlsFiles
from tests.support.facts import raises
from tests.support.flaky import FlakyTransport


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        (None, "NoneType"),
        (b"http://one", "bytes"),
        ({"http://one"}, "list | set"),
        ([["http://one"]], "list"),
        ([b"http://one"], "bytes"),
        (["http://one", ""], "scheme"),
        ("http://o ne", "'http://o ne' | space"),
        ("http://one\0", "control character"),
    ],
)
def test_a_url_is_a_string_or_a_list_of_them(url: Any, facts: str) -> None:
    for kind in (Client, AsyncClient):
        with raises(InputError, facts):
            kind(url)


def test_a_url_that_is_named_twice_is_one_server() -> None:
    with Client(["http://one:8000", "HTTP://one/", "grpc://one"]) as client:
        assert client.urls == ("http://one:8000", "grpc://one:8001")


@pytest.mark.parametrize("transport", [FlakyTransport, 5, "http://one", {}, iter([FlakyTransport()]), [FlakyTransport(), None]])
def test_a_transport_is_one_or_a_list_of_them(transport: Any) -> None:
    for kind in (Client, AsyncClient):
        with raises(InputError, "transport | FakeTransport"):
            kind("fake", transport=transport)


def test_files_for_tls_without_a_server_that_uses_it_are_refused(tmp_path: Path) -> None:
    with raises(InputError, "https:// | http://one | tls"):
        Client("http://one", tls=TlsFiles(tmp_path / "ca.pem"))
    with raises(InputError, "tls | 5"):
        Client("http://one", tls=5)  # type: ignore[arg-type]
