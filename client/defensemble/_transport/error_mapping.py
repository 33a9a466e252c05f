"""The one place where foreign errors become ours: by status code, never by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    ConnectionFailedError: "Is the server up, and is this its address? Triton's own ports are 8001 for gRPC and 8000 for HTTP.",
    DeadlineExceededError: "Raise timeout_s (--timeout), send fewer images at once, or look at the server's load.",
    NotReadyError: "It may be loading, restricted or overloaded: wait with Client.wait_ready, or try again later.",
    ForbiddenError: "The server restricts this; its operator holds the key.",
    ModelNotFoundError: "Client.models() lists what is served.",
    RequestRefusedError: "Client.describe(MODEL) tells the shapes, the outputs and the largest batch.",
    ServerFailedError: "The server's log says more.",
}
NO_HINTS: Mapping[type[ServiceError], str] = MappingProxyType({})
_NO_HEADERS: Mapping[bytes, bytes] = MappingProxyType({})
_NO_LOGIN = "A proxy in front of the server asks for a login, which this client does not send: call the server itself, or let it pass."
# Triton does not answer so, but what may stand in front of it does.
_HINTS_BY_HTTP_STATUS: Mapping[int, str] = {
    401: _NO_LOGIN,
    407: _NO_LOGIN,
    413: "Send fewer images at once (--batch-size), or raise the largest body that the proxy in front of the server takes.",
    414: "The URL holds the model's name: name a model that is served (Client.models()).",
}
_LONGEST_HEADER = 200

_BY_GRPC_CODE: dict[str, type[ServiceError]] = {
    "CANCELLED": ConnectionFailedError,
    "INVALID_ARGUMENT": RequestRefusedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "NOT_FOUND": ModelNotFoundError,
    "ALREADY_EXISTS": RequestRefusedError,
    "PERMISSION_DENIED": ForbiddenError,
    "UNAUTHENTICATED": ForbiddenError,
    "RESOURCE_EXHAUSTED": RequestRefusedError,  # here: a message that is larger than one side takes
    "FAILED_PRECONDITION": RequestRefusedError,
    "OUT_OF_RANGE": RequestRefusedError,
    "UNIMPLEMENTED": RequestRefusedError,
}

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


def service_error(kind: type[ServiceError], what: str, told: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> ServiceError:
    """An error of a kind: what was asked of whom, the answer, and the hint for that kind, from `hints` where they have one."""
    return kind(f"{what}: {told}. {hints.get(kind) or _HINTS[kind]}")


def hints_for_admins(admin_key: str | None) -> Mapping[type[ServiceError], str]:
    """Hints for calls that carry the admin key, or would where there is one."""
    sent = "No admin key was sent" if admin_key is None else "An admin key was sent, but it is not the server's"
    mend = "pass the admin key that the server was started with: Client(url, admin_key=...), or --admin-key-file FILE"
    return {
        ForbiddenError: f"{sent}: {mend}",
        RequestRefusedError: "What it names is in the model's folder, or in that of a model it needs; the server's log says more.",
    }


def redact_key(told: str, admin_key: str | None) -> str:
    """A server's words, or a proxy's page that shows what it was sent, without the key."""
    return told if admin_key is None else told.replace(admin_key, "(the admin key)")


def model_control_disabled(what: str, told: str) -> ServiceError:
    """The error for a load or an unload that is unavailable from a server whose repository is open to this client."""
    hint = "It loads and unloads on request only where it was started with --model-control-mode=explicit."
    return service_error(RequestRefusedError, what, told, {RequestRefusedError: hint})


def error_from_grpc(
    code: str, details: str | None, what: str, alive: Callable[[], bool], hints: Mapping[type[ServiceError], str] = NO_HINTS
) -> ServiceError:
    """Our error for a gRPC status, named by its code.

    UNAVAILABLE is the gRPC library's code where there is no connection, and Triton's where it is not ready: `alive` finds out which.
    """
    if code == "UNAVAILABLE":
        kind: type[ServiceError] = NotReadyError if alive() else ConnectionFailedError
    else:
        kind = _BY_GRPC_CODE.get(code, ServerFailedError)
    return service_error(kind, what, f"{code}, {details!r}", hints)


def error_from_http(
    status: int,
    told: str,
    what: str,
    hints: Mapping[type[ServiceError], str] = NO_HINTS,
    headers: Mapping[bytes, bytes] = _NO_HEADERS,
) -> ServiceError:
    """Our error for an HTTP status that is not 200, with the headers that would help."""
    kind = _BY_HTTP_STATUS.get(status, RequestRefusedError if 400 <= status < 500 else ServerFailedError)
    text = _status_text(status, told)
    for name in (b"WWW-Authenticate", b"Proxy-Authenticate", b"Retry-After"):
        if name.lower() in headers:
            text += f" ({name.decode()}: {headers[name.lower()].decode('latin-1'):.{_LONGEST_HEADER}})"
    if status in _HINTS_BY_HTTP_STATUS:
        hints = {kind: _HINTS_BY_HTTP_STATUS[status]}
    return service_error(kind, what, text, hints)


def error_from_redirect(status: int, location: str | None, what: str, asked: str) -> ServiceError:
    """Our error for an answer that sends the caller elsewhere, which no call follows: it would carry images and keys there unasked.

    `asked` is the URL that was called, `location` where the header leads to.
    """
    hint = "This client takes a server's scheme, host and port only: call the Triton server itself, or let the proxy pass /v2 paths on."
    if location is None:
        return service_error(RequestRefusedError, what, _status_text(status, ""), {RequestRefusedError: hint})
    try:
        goal, before = urlsplit(urljoin(asked, location)), urlsplit(asked)
        port = goal.port or {"http": 80, "https": 443}.get(goal.scheme)
    except ValueError:
        pass  # no URL: the error shows it
    else:
        moved = (goal.scheme, goal.netloc) != (before.scheme, before.netloc)
        if moved and port is not None and goal.hostname and (goal.path, goal.query) == (before.path, before.query):
            host = f"[{goal.hostname}]" if ":" in goal.hostname else goal.hostname
            hint = f'Redirects are not followed: pass "{goal.scheme}://{host}:{port}" as the URL.'
    told = f"{_status_text(status, '')}, Location: {location:.{_LONGEST_HEADER}}"
    return service_error(RequestRefusedError, what, told, {RequestRefusedError: hint})


def _status_text(status: int, told: str) -> str:
    if told:
        return f"HTTP {status}, {told!r}"
    known = {one.value: one.phrase for one in HTTPStatus}
    return f"HTTP {status} {known.get(status, '')}".rstrip()


def error_from_os(error: OSError, what: str) -> ServiceError:
    """Our error for what a socket reports: its deadline, or anything else that ends the connection."""
    if isinstance(error, TimeoutError):
        return service_error(DeadlineExceededError, what, "no answer in time")
    return service_error(ConnectionFailedError, what, f"{type(error).__name__}, {error}")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns what goes wrong where an answer of another form than the protocol's is taken apart into an error of ours."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        told = f"its answer is not what the KServe protocol says ({type(error).__name__}: {error})"
        raise service_error(ServerFailedError, what, told) from error
