"""The servers of a client: which one gets a request, and which ones are left out for a time."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .._exceptions import ConnectionFailedError, DeadlineExceededError, NotReadyError, ServiceError
from .._transport.base import AsyncTransport, Transport
from .model_info import ModelInfo
from .retries import RetryBudget, RetryPolicy

_log = logging.getLogger("defensemble")
_FIRST_EJECTION_S = 0.2
_LONGEST_RETRY_AFTER_S = 30.0  # a server that asks for more may be back before
_LONGEST_EJECTION_S = 1.0  # a probe is one small request, and calls may be waiting for a server to come back
_LOST_PROBE_S = 2.0  # a probe that takes longer is lost, with its event loop or in a fork


@dataclass(frozen=True)
class Counters:
    """What a client has done since it was created.

    Attributes:
        calls: Successful calls of `predict`, and batches of `predict_iter`.
        requests: Requests sent, retries and look-ups of models included.
        retries: Requests sent again after a failure, to the same or another server.
        failures: Requests that failed.
        ejections: How often a server was left out because it failed.
        images: Images classified.

    Example:
        >>> client.counters.retries
    """

    calls: int = 0
    requests: int = 0
    retries: int = 0
    failures: int = 0
    ejections: int = 0
    images: int = 0


class Replica:
    """One server of a client.

    Attributes:
        transport: Access to the server.
        is_async: Whether the transport's methods are coroutines.
        info_by_name: What is known of its models.
        batch_limits: The largest batch that it was found to accept, for models that do not report theirs.
        missing_features: Features that it was found not to have, in addition to those that its transport found.
        pending: Requests under way.
        was_reached: Whether it has ever responded.
        error: Why it is ejected; None if it is not.
    """

    def __init__(self, transport: Transport | AsyncTransport, is_async: bool) -> None:
        # Either protocol: callers of a method also look at is_async.
        self.transport: Any = transport
        self.is_async = is_async
        self.info_by_name: dict[str, ModelInfo] = {}
        self.batch_limits: dict[str, int] = {}
        self.missing_features: set[str] = set()
        self.pending = 0
        self.was_reached = False
        self.error: ServiceError | None = None
        self._failures = 0
        self._ejected_until = 0.0

    def __repr__(self) -> str:
        return f"Replica({self.url!r})"

    @property
    def url(self) -> str:
        """The server's URL."""
        url: str = self.transport.url
        return url

    @property
    def is_ejected(self) -> bool:
        """Whether requests avoid this server."""
        return self.error is not None


class ReplicaSet:
    """The servers of a client. Thread-safe.

    Args:
        replicas: The servers.
        policy: The budget of retries.
    """

    def __init__(self, replicas: Sequence[Replica], policy: RetryPolicy) -> None:
        self.replicas = tuple(replicas)
        self.is_single = len(replicas) == 1
        self._budget = RetryBudget(policy)
        self._lock = threading.RLock()  # a handler of a signal, or of the log, may call the client as well
        _SETS.add(self)
        self._turn = 0
        # Numbers of their own: a `collections.Counter` took 5 us of each call.
        self._calls = self._requests = self._retries = self._failures = self._ejections = self._images = 0

    @property
    def was_reached(self) -> bool:
        """Whether any of them has ever responded."""
        return any(replica.was_reached for replica in self.replicas)

    @property
    def counters(self) -> Counters:
        """A copy of the counters."""
        with self._lock:
            return Counters(self._calls, self._requests, self._retries, self._failures, self._ejections, self._images)

    def count_call(self, images: int) -> None:
        """Count a successful call."""
        with self._lock:
            self._calls += 1
            self._images += images

    def count_move(self) -> None:
        """Count a request that another server gets after one failed."""
        with self._lock:
            self._retries += 1

    def choose(self, avoided: Collection[Replica] = ()) -> Replica | None:
        """Return the server with the fewest requests under way, or None if all are ejected. Servers with equally few take turns.

        Args:
            avoided: Servers to use only if there is no other.
        """
        if self.is_single:
            return self.replicas[0]
        with self._lock:
            usable = [replica for replica in self.replicas if not replica.is_ejected]
            candidates = [replica for replica in usable if replica not in avoided] or usable
            if not candidates:
                return None
            self._turn += 1
            start = self._turn % len(candidates)
            return min(candidates[start:] + candidates[:start], key=lambda replica: replica.pending)

    def next_ejected(self) -> Replica:
        """Return the ejected server that has waited longest."""
        with self._lock:
            return min(self.replicas, key=lambda replica: replica._ejected_until)

    def has_other(self, replica: Replica) -> bool:
        """Return whether another server is not ejected."""
        return any(other is not replica and not other.is_ejected for other in self.replicas)

    def should_leave(self, replica: Replica, error: ServiceError) -> bool:
        """Return whether a server's error means that others should get its requests.

        A server that drains refuses at once, so that it has few requests under way and would get most of the next ones. The last server
        that responds is kept, and so is one that will never accept this client.
        """
        if isinstance(error, ConnectionFailedError) and error.is_retryable:
            return True
        return isinstance(error, (ConnectionFailedError, NotReadyError)) and self.has_other(replica)

    def begin(self, replica: Replica, *, is_retry: bool) -> None:
        """Count a request that starts, and add it to the budget of retries if it is none itself.

        Args:
            replica: The server that gets it.
            is_retry: Whether the server has failed it before.
        """
        with self._lock:
            replica.pending += 1
            self._requests += 1
            if is_retry:
                self._retries += 1
            else:
                self._budget.add_request()

    def end(self, replica: Replica, error: BaseException | None) -> None:
        """Count a request that is over. Eject a server that cannot be reached, did not respond in time, or refuses while others serve."""
        with self._lock:
            replica.pending -= 1
            if error is None:
                replica.was_reached = True
                if replica.is_ejected:
                    self._restore(replica)
                return
            if isinstance(error, ServiceError):
                self._failures += 1
                replica.was_reached |= not isinstance(error, (ConnectionFailedError, DeadlineExceededError))
            if self.is_single:
                return
            timed_out_here = isinstance(error, DeadlineExceededError) and not error.is_retryable
            if isinstance(error, ServiceError) and (timed_out_here or self.should_leave(replica, error)):
                self._eject(replica, error)

    def due_probes(self) -> list[Replica]:
        """Return the ejected servers that should be probed now, each to one caller; the caller then calls `end_probe`."""
        if self.is_single:
            return []
        now = time.monotonic()
        due = []
        with self._lock:
            for replica in self.replicas:
                if replica.is_ejected and replica._ejected_until <= now:
                    replica._ejected_until = now + _LOST_PROBE_S
                    due.append(replica)
        return due

    def end_probe(self, replica: Replica, error: ServiceError | None) -> None:
        """Use a server again after a successful probe; wait longer before the next one after a failed probe."""
        with self._lock:
            if error is None:
                replica.was_reached = True
                self._restore(replica)
            else:
                pause_s = min(_LONGEST_EJECTION_S, _FIRST_EJECTION_S * 2.0 ** min(replica._failures, 10))
                replica._failures += 1
                self._set_aside(replica, error, pause_s)

    def take_retry(self) -> bool:
        """Return whether the budget allows a retry, and count it if it does."""
        with self._lock:
            return self._budget.take_retry()

    def _eject(self, replica: Replica, error: ServiceError) -> None:
        if replica.is_ejected:
            return  # requests that were under way: when it is probed is settled
        self._ejections += 1
        _log.warning("%s is not used for now: %s", replica.url, error)
        # One lost connection or time-out may be no fault of the server: a probe decides at once.
        self._set_aside(replica, error, _FIRST_EJECTION_S if isinstance(error, NotReadyError) else 0.0)

    def _set_aside(self, replica: Replica, error: ServiceError, pause_s: float) -> None:
        replica.error = error
        replica._ejected_until = time.monotonic() + max(pause_s, min(error.retry_after_s or 0.0, _LONGEST_RETRY_AFTER_S))

    def _restore(self, replica: Replica) -> None:
        if replica.is_ejected:
            _log.warning("%s is used again", replica.url)
        replica._failures = 0
        replica.error = None

    def _reset(self) -> None:
        """Forget what the threads of the parent did, which do not exist in a forked child: one may hold the lock, others send requests."""
        self._lock = threading.RLock()
        for replica in self.replicas:
            replica.pending = 0


_SETS: weakref.WeakSet[ReplicaSet] = weakref.WeakSet()


def _reset_all() -> None:
    for replicas in _SETS:
        replicas._reset()


os.register_at_fork(after_in_child=_reset_all)
