"""The errors of this package. All of them pickle.

    DefensembleError
    ├── InputError (ValueError)           an argument is invalid; nothing was sent
    ├── OutputNotRequestedError           the prediction does not have the output
    ├── ClientClosedError                 the client was closed before the call
    ├── MissingExtraError (ImportError)   an optional part of this distribution is not installed
    └── ServiceError                      the call failed at the server or on the way to it
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


class ServiceError(DefensembleError):
    """The call failed at the server or on the way to it."""


class ConnectionFailedError(ServiceError):
    """The connection to the server could not be made, or was lost during the call."""


class DeadlineExceededError(ServiceError, TimeoutError):
    """The server did not respond in time."""


class NotReadyError(ServiceError):
    """The server responds, but cannot serve the call now: it is loading, or its queue is full."""


class ForbiddenError(ServiceError):
    """The server does not allow this client the call."""


class ModelNotFoundError(ServiceError):
    """The server has no such model."""


class RequestRefusedError(ServiceError):
    """The server rejects the request as invalid. Sending it again does not help."""


class ServerFailedError(ServiceError):
    """The server failed, or its response breaks the protocol."""
