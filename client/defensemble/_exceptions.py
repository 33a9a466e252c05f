"""The errors of this package, all of which pickle.

    DefensembleError
    ├── InputError (ValueError)           what the caller gave is wrong; nothing was sent
    ├── OutputNotRequestedError           the prediction does not hold what was asked of it
    ├── ClientClosedError                 the client was closed before this call
    ├── MissingExtraError (ImportError)   a part of this distribution is not installed
    └── ServiceError                      went wrong on the way to the server, or in it
        ├── ConnectionFailedError         no connection, or it was lost during the call
        ├── DeadlineExceededError (TimeoutError)
        ├── NotReadyError                 it answers, but cannot serve this now (or its queue is full)
        ├── ForbiddenError                it does not let this client do that
        ├── ModelNotFoundError            it serves no such model
        ├── RequestRefusedError           it calls the request wrong
        └── ServerFailedError             it failed, or its answer breaks the protocol

What tritonclient, grpc, sockets and HTTP report is turned into these in one place, `_transport/error_mapping.py`, and chained.
"""

from __future__ import annotations


class DefensembleError(Exception):
    """Anything that this package reports; its text says what, got, expected and how to mend it."""


class InputError(DefensembleError, ValueError):
    """What the caller gave is wrong, and nothing was sent."""


class OutputNotRequestedError(DefensembleError):
    """The prediction does not hold this output, because `predict` was not asked for it."""


class ClientClosedError(DefensembleError):
    """The client was closed before this call."""


class MissingExtraError(DefensembleError, ImportError):
    """A part of this distribution is not installed; the text holds the pip command."""


class ServiceError(DefensembleError):
    """Something went wrong on the way to the server, or in it."""


class ConnectionFailedError(ServiceError):
    """There is no connection to the server, or it was lost during the call."""


class DeadlineExceededError(ServiceError, TimeoutError):
    """The answer did not come in time."""


class NotReadyError(ServiceError):
    """The server answers, but cannot serve this now: it is loading, or its queue is full."""


class ForbiddenError(ServiceError):
    """The server does not let this client do that."""


class ModelNotFoundError(ServiceError):
    """The server serves no such model."""


class RequestRefusedError(ServiceError):
    """The server calls the request itself wrong; sending it again will not help."""


class ServerFailedError(ServiceError):
    """The server failed, or its answer breaks the protocol."""
