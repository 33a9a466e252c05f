"""The one place that translates foreign errors into the errors of this package: by status code or class, never by text."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import urljoin, urlsplit

from .._exceptions import (
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    ModelNotFoundError,
    NotReadyError,
    RequestRefusedError,
    ServerFailedError,
    ServiceError,
)

_HINTS: Mapping[type[ServiceError], str] = {
    ConnectionFailedError: "Is the server still running? Check its log and the port (by default 8001 for gRPC and 8000 for HTTP).",
    DeadlineExceededError: "Raise timeout_s (--timeout), send fewer images per call, or check the server's load.",
    NotReadyError: "The server may be loading, restricted or overloaded: wait with Client.wait_ready, or try again later.",
    ForbiddenError: "The server restricts this call; its operator has the key.",
    ModelNotFoundError: "Client.models() lists the models that are served.",
    RequestRefusedError: "Client.describe(MODEL) returns the shapes, the outputs and the largest batch of a model.",
    ServerFailedError: "See the server's log.",
}
NO_HINTS: Mapping[type[ServiceError], str] = MappingProxyType({})
_NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})
_LOGIN_REQUIRED = (
    "A proxy in front of the server requires a login, which this client does not support: call the server directly, or exempt it."
)
# Triton itself never sends these statuses, but a proxy in front of it may.
_HINTS_BY_HTTP_STATUS: Mapping[int, str] = {
    401: _LOGIN_REQUIRED,
    407: _LOGIN_REQUIRED,
    413: "Send fewer images per call (--batch-size), or raise the body limit of the proxy in front of the server.",
    414: "The URL contains the model's name: use a model that is served (Client.models()).",
}
_MAX_HEADER_CHARACTERS = 200

_BY_GRPC_CODE: dict[str, type[ServiceError]] = {
    "CANCELLED": ConnectionFailedError,
    "INVALID_ARGUMENT": RequestRefusedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "NOT_FOUND": ModelNotFoundError,
    "ALREADY_EXISTS": RequestRefusedError,
    "PERMISSION_DENIED": ForbiddenError,
    "UNAUTHENTICATED": ForbiddenError,
    "RESOURCE_EXHAUSTED": RequestRefusedError,  # here: a message larger than one side accepts
    "FAILED_PRECONDITION": RequestRefusedError,
    "OUT_OF_RANGE": RequestRefusedError,
    "UNIMPLEMENTED": RequestRefusedError,
}
# The gRPC library produces these itself. Its text is in `__cause__`, and a plain reason is in the message.
_REASONS_BY_GRPC_CODE = {"CANCELLED": "the call was cancelled", "DEADLINE_EXCEEDED": "timed out"}
_NOT_SENT = ("failed to connect to all addresses", "DNS resolution failed")  # what gRPC reports if a call had no connection

_BY_HTTP_STATUS: dict[int, type[ServiceError]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: ModelNotFoundError,
    407: ForbiddenError,
    408: DeadlineExceededError,
    429: NotReadyError,
    502: ConnectionFailedError,  # a proxy could not reach the server behind it
    503: NotReadyError,
    504: DeadlineExceededError,
}
_RETRYABLE_HTTP_STATUSES = frozenset({429, 502, 503, 504})


def call_context(url: str, action: str, model: str = "") -> str:
    """Return how a message names a failed call, such as `cannot run model 'alpha' on grpc://localhost:8001`."""
    return f"cannot {action} {model!r} on {url}" if model else f"cannot {action} on {url}"


def service_error(kind: type[ServiceError], context: str, reason: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> ServiceError:
    """Return an error of a class: the failed call, the reason, and how to fix it.

    Args:
        kind: The class of the error.
        context: The failed call, from `call_context`.
        reason: Why it failed.
        hints: How to fix it, by class; the default hint applies to a class without one.
    """
    return kind(f"{context}: {reason}. {hints.get(kind) or _HINTS[kind]}")


def hints_for_admins(admin_key: str | None) -> Mapping[type[ServiceError], str]:
    """Return the hints for calls that send the admin key if there is one."""
    sent = "No admin key was sent" if admin_key is None else "An admin key was sent, but it is not the server's"
    return {
        ForbiddenError: f"{sent}: pass the key that the server was started with, Client(url, admin_key=...) or --admin-key-file FILE",
        RequestRefusedError: "Check the folder of the model and those of the models it needs; see the server's log.",
    }


def redact_key(text: str, admin_key: str | None) -> str:
    """Return a server's or a proxy's text without the admin key: a proxy's error page may show the request."""
    return text if admin_key is None else text.replace(admin_key, "(the admin key)")


def model_control_disabled(context: str, reason: str) -> ServiceError:
    """Return the error for a load or unload that the server's model control mode does not allow."""
    hint = "Models can be loaded and unloaded on request only if the server was started with --model-control-mode=explicit."
    return service_error(RequestRefusedError, context, reason, {RequestRefusedError: hint})


def error_from_grpc(
    code: str,
    details: str | None,
    context: str,
    unreachable: Callable[[], ServiceError | None],
    hints: Mapping[type[ServiceError], str] = NO_HINTS,
) -> ServiceError:
    """Return the error for a gRPC status.

    The code UNAVAILABLE has two meanings: the gRPC library uses it for a failed connection, and Triton when it is not ready.

    Args:
        code: Name of the status code.
        details: The status's text, which is quoted if the server wrote it.
        context: The failed call, from `call_context`.
        unreachable: Called for UNAVAILABLE; returns the error of a failed connection, or None if the server is alive.
        hints: How to fix it, by class.
    """
    if code == "UNAVAILABLE":
        unavailable = unreachable() or service_error(NotReadyError, context, f"{code}, {details!r}", hints)
        # Not whether a connection can be made now: the call may have been lost when the server died.
        unavailable.was_sent = not (details or "").startswith(_NOT_SENT)
        return unavailable
    reason = _REASONS_BY_GRPC_CODE.get(code) or f"{code}, {details!r}"
    return service_error(_BY_GRPC_CODE.get(code, ServerFailedError), context, reason, hints)


def error_from_http(
    status: int,
    text: str,
    context: str,
    hints: Mapping[type[ServiceError], str] = NO_HINTS,
    headers: Mapping[bytes, bytes] = _NO_HEADERS,
) -> ServiceError:
    """Return the error for an HTTP status other than 200.

    Args:
        status: The status.
        text: The server's text, which is quoted.
        context: The failed call, from `call_context`.
        hints: How to fix it, by class.
        headers: The response's headers, names in lower case; the useful ones are quoted.
    """
    kind = _BY_HTTP_STATUS.get(status, RequestRefusedError if 400 <= status < 500 else ServerFailedError)
    reason = _format_status(status, text)
    for name in (b"WWW-Authenticate", b"Proxy-Authenticate", b"Retry-After"):
        if name.lower() in headers:
            reason += f" ({name.decode()}: {headers[name.lower()].decode('latin-1'):.{_MAX_HEADER_CHARACTERS}})"
    if status in _HINTS_BY_HTTP_STATUS:
        hints = {kind: _HINTS_BY_HTTP_STATUS[status]}
    error = service_error(kind, context, reason, hints)
    error.is_retryable = status in _RETRYABLE_HTTP_STATUSES
    error.retry_after_s = _seconds_from_retry_after(headers.get(b"retry-after", b"").decode("latin-1").strip())
    return error


def _seconds_from_retry_after(text: str) -> float | None:
    """Return the seconds of a `Retry-After` header, which is a number of them or a date; None if it is neither."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": UTC, from an unknown zone
        date = date.replace(tzinfo=timezone.utc)
    return max((date - datetime.now(timezone.utc)).total_seconds(), 0.0)


def error_from_redirect(status: int, location: str | None, context: str, url: str) -> ServiceError:
    """Return the error for a redirect. The client follows none: it would send images and keys to another server.

    Args:
        status: The HTTP status.
        location: The `Location` header.
        context: The failed call, from `call_context`.
        url: The URL of the call.
    """
    hint = "The client uses only scheme, host and port of a URL: call the Triton server directly, or let the proxy forward /v2 paths."
    if location is None:
        return service_error(RequestRefusedError, context, _format_status(status, ""), {RequestRefusedError: hint})
    try:
        target, called = urlsplit(urljoin(url, location)), urlsplit(url)
        port = target.port or {"http": 80, "https": 443}.get(target.scheme)
    except ValueError:
        pass  # not a URL: the error quotes it
    else:
        is_moved = (target.scheme, target.netloc) != (called.scheme, called.netloc)
        if is_moved and port is not None and target.hostname and (target.path, target.query) == (called.path, called.query):
            host = f"[{target.hostname}]" if ":" in target.hostname else target.hostname
            hint = f'Redirects are not followed: pass "{target.scheme}://{host}:{port}" as the URL.'
    reason = f"{_format_status(status, '')}, Location: {location:.{_MAX_HEADER_CHARACTERS}}"
    return service_error(RequestRefusedError, context, reason, {RequestRefusedError: hint})


def _format_status(status: int, text: str) -> str:
    if text:
        return f"HTTP {status}, {text!r}"
    phrases = {entry.value: entry.phrase for entry in HTTPStatus}
    return f"HTTP {status} {phrases.get(status, '')}".rstrip()


def error_from_connect(error: OSError, url: str, *, kind: type[ServiceError] | None = None) -> ServiceError:
    """Return the error for a connection that could not be made.

    Args:
        error: The error of the socket.
        url: The server's URL.
        kind: The class of the error; by default `DeadlineExceededError` for a time-out, else `ConnectionFailedError`.
    """
    if kind is None:
        kind = DeadlineExceededError if isinstance(error, TimeoutError) else ConnectionFailedError
    if isinstance(error, ssl.SSLCertVerificationError):
        translated = kind(
            f"cannot connect to {url}: the server's certificate is not trusted ({error.verify_message}). Install its certificate authority "
            "on this machine, or pass tls=TlsFiles(ca_file) to Client."
        )
    elif isinstance(error, socket.gaierror):
        translated = kind(f"cannot connect to {url}: the host name cannot be resolved. Check the host in the URL, and this machine's DNS.")
    else:
        translated = kind(
            f"cannot connect to {url}: {_connect_reason(error)}; is the server running? Start one with 'defensemble serve' or check the "
            "host and port."
        )
    translated.was_sent = False
    if _is_permanent(error):
        translated.is_retryable = False
    return translated


def _connect_reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, TimeoutError):
        return "connection timed out"
    if isinstance(error, ssl.SSLError):
        return "TLS handshake failed (does the port use TLS?)"
    return os.strerror(error.errno).lower() if error.errno else type(error).__name__


def error_from_os(error: OSError, context: str) -> ServiceError:
    """Return the error for a socket that failed during a call: a time-out, or a lost connection."""
    if isinstance(error, TimeoutError):
        return service_error(DeadlineExceededError, context, "timed out")
    detail = "the server cut it" if isinstance(error, ssl.SSLEOFError) else error.strerror or str(error)
    lost = service_error(ConnectionFailedError, context, f"connection lost ({detail[:1].lower()}{detail[1:]})")
    if _is_permanent(error):
        lost.is_retryable = False
    return lost


def _is_permanent(error: OSError) -> bool:
    # TLS that fails by a rule fails again: an untrusted certificate, on either side, or a port without TLS. A cut connection may not.
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)


@contextmanager
def protocol_errors(context: str) -> Iterator[None]:
    """Raise a `ServerFailedError` if the block fails to parse a response, which then does not follow the protocol."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"the response does not follow the KServe protocol ({type(error).__name__}: {error})"
        raise service_error(ServerFailedError, context, reason) from error
