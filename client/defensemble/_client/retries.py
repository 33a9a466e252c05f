"""When a failed request is sent again, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .._exceptions import InputError

_LARGEST = 1e9  # of each value: larger integers overflow
_FULL_RESERVES = 10  # a budget never holds more than this many times its reserve


@dataclass(frozen=True)
class RetryPolicy:
    """When a client sends a failed request again. Inference is idempotent, so that this is safe.

    A request is repeated if the connection failed or was cut, and after HTTP 429, 502, 503 and 504 or gRPC's UNAVAILABLE; never after
    invalid input, an unknown model, or the end of the deadline. Before retry n (from 0), the client waits for a random time between 0 and
    `min(max_backoff_s, initial_backoff_s * 2**n)` seconds (exponential backoff with full jitter), and at least for `Retry-After`. If the
    deadline would pass meanwhile, it does not wait.

    With several URLs, a request whose connection failed, or that a server is not ready to serve, goes to another server at once, and
    counts neither here nor in the budget. Each server gets a call at most 1 + `max_retries` times.

    Attributes:
        max_retries: Retries of one request; 0 for none.
        initial_backoff_s: Upper limit of the first wait, in seconds.
        max_backoff_s: Upper limit of any wait, in seconds.
        budget: Retries of a client as a fraction of its requests, which limits the load on a failing server.
        reserve: Retries that a new client may send in addition.

    Raises:
        InputError: A value is negative, or too large.

    Example:
        >>> client = Client("http://localhost:8000", retry=RetryPolicy(max_retries=5))
    """

    max_retries: int = 5  # with these waits, a call outlasts a restart of the server (0.7 s) in most cases
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    budget: float = 0.1
    reserve: int = 10

    def __post_init__(self) -> None:
        for name in ("max_retries", "reserve"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
                raise InputError(f"{name} must be an integer from 0 to {_LARGEST:g}, got {value!r:.100}")
        for name in ("initial_backoff_s", "max_backoff_s", "budget"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _LARGEST:
                raise InputError(f"{name} must be a number from 0 to {_LARGEST:g}, got {value!r:.100}")

    def backoff_s(self, retry: int) -> float:
        """Return the random wait before a retry (0 for the first), in seconds."""
        return random.uniform(0, min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** min(retry, 60)))


class RetryBudget:
    """Limits the retries of a client to a fraction of its requests. The caller holds a lock."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._per_request = policy.budget
        self._largest = max(1, policy.reserve) * _FULL_RESERVES
        self._retries = float(policy.reserve)

    def add_request(self) -> None:
        """Count a request that is not a retry."""
        self._retries = min(self._largest, self._retries + self._per_request)

    def take_retry(self) -> bool:
        """Return whether a retry is allowed, and count it if it is."""
        if self._retries < 1:
            return False
        self._retries -= 1
        return True
