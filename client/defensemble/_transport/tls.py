"""The PEM files of TLS connections, checked before the first connection."""

from __future__ import annotations

import ssl
from pathlib import Path

from defensemble_repository.filesystem.regular_files import check_regular

from .._exceptions import InputError
from .address import TLS_SCHEMES, Address
from .base import TlsFiles


def ssl_context_for_address(address: Address, tls: TlsFiles | None) -> ssl.SSLContext | None:
    """Return the context for a server; None if its URL has no TLS.

    Args:
        address: The server.
        tls: The files for TLS; None for the default authorities.

    Raises:
        InputError: A file is unusable, or there are files for a scheme without TLS.
    """
    if address.scheme in TLS_SCHEMES:
        return ssl_context_from_files(tls)
    if tls is not None:
        schemes = " and ".join(f"{scheme}://" for scheme in TLS_SCHEMES)
        raise InputError(f"tls is for {schemes}, got {tls!r:.100} for {address.url}, which encrypts nothing: change the URL, or omit tls")
    return None


def ssl_context_from_files(tls: TlsFiles | None) -> ssl.SSLContext:
    """Return the context of a client that trusts the authorities of `tls` and shows its certificate.

    Raises:
        InputError: A file cannot be read or is no PEM file of its kind, or the key does not belong to the certificate.
    """
    tls = check_tls(tls)
    ca_file, certificate_file, key_file = tls.ca_file, tls.certificate_file, tls.key_file
    for name, file in vars(tls).items():
        try:
            if file is not None:
                check_regular(file)  # OpenSSL would wait for the writer of a FIFO
        except (OSError, ValueError) as error:  # ValueError: a path that no file can have
            raise InputError(f"cannot read {name} {str(file)!r} ({_reason(error)}): expected a PEM file") from error
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # the class of SSLError, too
        raise InputError(f"cannot read ca_file {str(ca_file)!r} ({_reason(error)}): expected a PEM file of certificates") from error
    if certificate_file is not None:
        files = f"certificate_file {str(certificate_file)!r}" + ("" if key_file is None else f" and key_file {str(key_file)!r}")
        try:
            context.load_cert_chain(certificate_file, key_file, _refuse_password)
        except OSError as error:
            expected = "expected PEM files of a certificate chain and of its private key, or one file with both"
            raise InputError(f"cannot use {files} ({_reason(error)}): {expected}") from error
    return context


def check_tls(tls: object) -> TlsFiles:
    """Return the files, or those for the default authorities. No file is opened.

    Raises:
        InputError: `tls` is of another type, or a key has no certificate.
    """
    if tls is None:
        return TlsFiles()
    if not isinstance(tls, TlsFiles):
        raise InputError(f"tls must be TlsFiles(ca_file, certificate_file, key_file) or None, got {tls!r:.100}")
    for name, file in vars(tls).items():
        if not (file is None or isinstance(file, (str, Path))) or file == "":  # "" would be the system's authorities
            raise InputError(f"{name} of tls must be a path or None, got {file!r:.100}")
    if tls.key_file is not None and tls.certificate_file is None:
        raise InputError(f"tls has key_file {str(tls.key_file)!r} but no certificate_file: pass the certificate of the key, too")
    return tls


def _refuse_password() -> str:
    # Without this, OpenSSL asks for the password on the terminal, and gRPC cannot take one.
    raise OSError("the private key is encrypted; decrypt it first, for example with 'openssl pkey'")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return text[:1].lower() + text[1:]
