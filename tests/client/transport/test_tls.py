from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from defensemble import AsyncClient, Client, InputError
from defensemble._transport.base import TlsFiles, check_compression
from defensemble._transport.tls import ssl_context_from_files
from tests.support.certificates import make_certificate, openssl
from tests.support.facts import raises


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")
    make_certificate(folder, "mine")
    make_certificate(folder, "other")
    openssl("pkey", "-in", folder / "mine.key", "-aes128", "-passout", "pass:secret", "-out", folder / "encrypted.key")
    (folder / "text.pem").write_text("not a certificate")
    (folder / "empty.pem").write_text("")
    os.mkfifo(folder / "fifo")
    return folder


def files(folder: Path, *names: str | None) -> TlsFiles:
    return TlsFiles(*(None if name is None else folder / name for name in names))


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (("absent.pem",), "ca_file | absent.pem | no such file"),
        (("text.pem",), "ca_file | text.pem"),
        (("empty.pem",), "ca_file | empty.pem"),
        ((".",), "ca_file | is a directory"),
        (("fifo",), "ca_file | fifo | a FIFO"),
        ((None, "fifo"), "certificate_file | fifo | a FIFO"),
        ((None, "mine.pem", "fifo"), "key_file | fifo | a FIFO"),
        (("a\0b",), "ca_file | null"),
        ((None, "mine.pem"), "certificate_file | mine.pem | private key"),
        ((None, "mine.pem", "absent.key"), "key_file | absent.key | no such file"),
        ((None, "mine.pem", "text.pem"), "key_file | text.pem"),
        ((None, "mine.pem", "other.key"), "mine.pem | other.key | mismatch"),
        ((None, "mine.pem", "encrypted.key"), "encrypted.key | encrypted"),
        ((None, None, "mine.key"), "mine.key | certificate_file"),
    ],
)
def test_an_unusable_file_is_named(folder: Path, names: tuple[str | None, ...], facts: str) -> None:
    with raises(InputError, facts):
        ssl_context_from_files(files(folder, *names))


def test_valid_files_make_a_context_that_checks_servers(folder: Path) -> None:
    context = ssl_context_from_files(files(folder, "mine.pem", "mine.pem", "mine.key"))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert [authority["subject"] for authority in context.get_ca_certs()] == [((("commonName", "localhost"),),)]


@pytest.mark.parametrize("tls", ["ca.pem", ("ca.pem",), TlsFiles(3), TlsFiles(None, b"x"), TlsFiles("")])  # type: ignore[arg-type]
def test_values_of_another_type_are_refused(tls: Any) -> None:
    with raises(InputError, "tls"):
        ssl_context_from_files(tls)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_files_for_a_url_without_tls_are_an_error(scheme: str) -> None:
    for client in (Client, AsyncClient):
        with raises(InputError, f"tls | {scheme}:// | {scheme}s://"):
            client(f"{scheme}://localhost", tls=TlsFiles())


def test_the_compression_is_gzip_or_none() -> None:
    assert (check_compression("gzip"), check_compression(None)) == ("gzip", None)
    for compression in ("deflate", "", "GZIP", 1):
        with raises(InputError, f"gzip | {compression!r}"):
            check_compression(compression)  # type: ignore[arg-type]
