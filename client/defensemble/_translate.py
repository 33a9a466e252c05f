"""The one place where foreign errors become ours: by status code, never by text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from defensemble._exceptions import (
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
    408: DeadlineExceededError,
    429: NotReadyError,
    502: ConnectionFailedError,  # a proxy could not reach the server behind it
    503: NotReadyError,
    504: DeadlineExceededError,
}


def service_error(kind: type[ServiceError], what: str, told: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> ServiceError:
    """An error of a kind: what was asked of whom, what was told, and the hint for that kind, from `hints` where they have one."""
    return kind(f"{what}: {told}. {hints.get(kind) or _HINTS[kind]}")


def hints_for_admins(admin_key: str | None) -> Mapping[type[ServiceError], str]:
    """Hints for calls that carry the admin key, or would where there is one."""
    sent = "No admin key was sent" if admin_key is None else "An admin key was sent, but it is not the server's"
    mend = "pass the admin key that the server was started with: Client(url, admin_key=...), or --admin-key-file FILE"
    return {
        ForbiddenError: f"{sent}: {mend}",
        RequestRefusedError: "What it names is in the model's folder, or in that of a model it needs; the server's log says more.",
    }


def without_key(told: str, admin_key: str | None) -> str:
    """A server's words, or a proxy's page that shows what it was sent, without the key."""
    return told if admin_key is None else told.replace(admin_key, "(the admin key)")


def loads_nothing(what: str, told: str) -> ServiceError:
    """The error for a load or an unload that is unavailable from a server whose repository is open to this client."""
    hint = "It loads and unloads on request only where it was started with --model-control-mode=explicit."
    return service_error(RequestRefusedError, what, told, {RequestRefusedError: hint})


def error_from_grpc(
    code: str, details: str | None, what: str, alive: Callable[[], bool], hints: Mapping[type[ServiceError], str] = NO_HINTS
) -> ServiceError:
    """Our error for a gRPC status, named by its code.

    UNAVAILABLE is what the gRPC library says where there is no connection, and what Triton says where it is not ready: `alive` asks which.
    """
    if code == "UNAVAILABLE":
        kind: type[ServiceError] = NotReadyError if alive() else ConnectionFailedError
    else:
        kind = _BY_GRPC_CODE.get(code, ServerFailedError)
    return service_error(kind, what, f"{code}, {details!r}", hints)


def error_from_http(status: int, told: str, what: str, hints: Mapping[type[ServiceError], str] = NO_HINTS) -> ServiceError:
    """Our error for an HTTP status that is not 200."""
    kind = _BY_HTTP_STATUS.get(status, RequestRefusedError if 400 <= status < 500 else ServerFailedError)
    return service_error(kind, what, f"HTTP {status}, {told!r}", hints)


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
