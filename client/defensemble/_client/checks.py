"""Checks of arguments."""

from __future__ import annotations

import numpy as np

from .._exceptions import InputError

_LONGEST_TIMEOUT_S = 1e6  # what sockets and gRPC take without overflow
_LONGEST_REQUEST_ID = 200


def check_timeout(timeout_s: object, name: str = "timeout_s") -> float:
    """Return a timeout in seconds.

    Args:
        timeout_s: The timeout.
        name: Name of the argument, for the message.

    Raises:
        InputError: It is not a positive number, or too large.
    """
    is_number = isinstance(timeout_s, (int, float, np.integer, np.floating)) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s <= _LONGEST_TIMEOUT_S:  # type: ignore[operator]
        raise InputError(f"{name} must be a positive number of seconds, at most {_LONGEST_TIMEOUT_S:g}, got {timeout_s!r:.100}")
    return float(timeout_s)  # type: ignore[arg-type]


def check_name(model: object) -> str | None:
    """Return the name of a model, or None.

    Raises:
        InputError: It is neither a name nor None. An empty name is none: a variable was not set.
    """
    if model is not None and not (isinstance(model, str) and model):
        raise InputError(f"model must be the name of a model, or None for the only ensemble; got the {type(model).__name__} {model!r:.100}")
    return model


def check_count(count: object, name: str) -> int:
    """Return a number of things.

    Args:
        count: The number.
        name: Name of the argument, for the message.

    Raises:
        InputError: It is not an integer of 1 or more.
    """
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or count < 1:
        raise InputError(f"{name} must be an integer of 1 or more, got {count!r:.100}")
    return int(count)


def check_request_id(request_id: object) -> str:
    """Return a request's identifier, which goes into headers and the server's log.

    Raises:
        InputError: It is not a string of 1 to 200 printable ASCII characters.
    """
    if (
        not isinstance(request_id, str)
        or not 1 <= len(request_id) <= _LONGEST_REQUEST_ID
        or not (request_id.isascii() and request_id.isprintable())
    ):
        raise InputError(f"request_id must be a string of 1 to {_LONGEST_REQUEST_ID} printable ASCII characters, got {request_id!r:.100}")
    return request_id
