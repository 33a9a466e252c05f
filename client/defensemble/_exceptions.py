"""The errors of this package. All of them pickle.

    DefensembleError
    ├── InputError (ValueError)           an argument is invalid; nothing was sent
    ├── OutputNotRequestedError           the prediction does not have the output
    ├── ClientClosedError                 the client was closed before the call
    ├── MissingExtraError (ImportError)   an optional part of this distribution is not installed
    ├── WorkerEndedError                  a worker process of a probe ended
    └── ServiceError                      the call failed at the server or on the way to it
        ├── RetriesExhaustedError         each attempt failed, and another one might have succeeded
        ├── ConnectionFailedError         no connection, or it was lost during the call
        ├── DeadlineExceededError (TimeoutError)
        ├── NotReadyError                 the server is loading or overloaded
        ├── ForbiddenError                the server does not allow this client the call
        ├── ModelNotFoundError            the server has no such model
        ├── RequestRefusedError           the server rejects the request as invalid
        └── ServerFailedError             the server failed, or its response breaks the protocol

`_transport/error_mapping.py` translates the errors of tritonclient, grpc, sockets and HTTP into these, with the original as the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class DefensembleError(Exception):
    """The base class of all errors of this package. The text states what is wrong, what was expected and how to fix it.

    Example:
        >>> try:
        ...     client.predict(images)
        ... except NotReadyError:
        ...     client.wait_ready(30)
    """


class InputError(DefensembleError, ValueError):
    """An argument is invalid. Nothing was sent."""


class OutputNotRequestedError(DefensembleError):
    """The prediction does not have this output, because `predict` did not request it."""


class ClientClosedError(DefensembleError):
    """The client was closed before the call."""


class MissingExtraError(DefensembleError, ImportError):
    """An optional part of this distribution is not installed. The text has the pip command."""


class WorkerEndedError(DefensembleError):
    """A worker process of a probe ended, such as for lack of memory. The run can be resumed."""


class ServiceError(DefensembleError):
    """The call failed at the server or on the way to it.

    Attributes:
        is_retryable: Whether the same call may succeed at a second attempt, or on another server.
        retry_after_s: Seconds to wait before it, as the server asked (`Retry-After`); None if it did not.
        was_sent: Whether the server may have received the request: False if no connection was made.
    """

    is_retryable: bool = False
    retry_after_s: float | None = None
    was_sent: bool = True


class ConnectionFailedError(ServiceError):
    """The connection to the server could not be made, or was lost during the call."""

    is_retryable = True


class DeadlineExceededError(ServiceError, TimeoutError):
    """The server did not respond in time."""


class NotReadyError(ServiceError):
    """The server responds, but cannot serve the call now: it is loading, or its queue is full."""

    is_retryable = True


class ForbiddenError(ServiceError):
    """The server does not allow this client the call."""


class ModelNotFoundError(ServiceError):
    """The server has no such model."""


class RequestRefusedError(ServiceError):
    """The server rejects the request as invalid. Sending it again does not help."""


class ServerFailedError(ServiceError):
    """The server failed, or its response breaks the protocol."""


@dataclass(frozen=True)
class Attempt:
    """An attempt of a call that failed.

    Attributes:
        url: The server.
        error: Why it failed.
        started_s: When it began, in seconds after the call's beginning.
    """

    url: str
    error: ServiceError
    started_s: float


class RetriesExhaustedError(ServiceError):
    """Each attempt of a call failed, and there is no more. The cause is the last error.

    Attributes:
        attempts: The attempts, in order.

    Example:
        >>> try:
        ...     client.predict(images)
        ... except RetriesExhaustedError as error:
        ...     print([attempt.url for attempt in error.attempts])
    """

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message, tuple(attempts))
        self.attempts = tuple(attempts)

    def __str__(self) -> str:
        return str(self.args[0])
