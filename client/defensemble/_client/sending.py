"""How the requests of a call reach a server: one deadline, retries within it, and another server if one fails."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from .._exceptions import (
    Attempt,
    ClientClosedError,
    DeadlineExceededError,
    RetriesExhaustedError,
    ServiceError,
)
from .replicas import Replica, ReplicaSet
from .retries import RetryPolicy
from .runtime import Runtime

_Result = TypeVar("_Result")
_log = logging.getLogger("defensemble")
_PROBE_TIMEOUT_S = 1.0
_RECOVERY_PAUSE_S = 0.05  # between looks at the servers while all of them are ejected


class Stop:
    """Ends the calls that it is passed to, from another thread or task."""

    def __init__(self) -> None:
        self.is_set = False


class Call:
    """One call of a client: its deadline, and the attempts that failed.

    Args:
        timeout_s: Seconds until its deadline.
        max_retries: Retries of each of its requests.
        stops: Any of them ends the call before its deadline.
        is_bound: Whether it is about one server, so that no other may get its requests.
    """

    def __init__(self, timeout_s: float, max_retries: int, stops: tuple[Stop, ...] = (), *, is_bound: bool = False) -> None:
        self.timeout_s = timeout_s
        self.max_retries = max_retries
        self.is_bound = is_bound
        self.started = time.monotonic()
        self.attempts: list[Attempt] = []
        self.avoided: set[Replica] = set()
        self.waits_for: ServiceError | None = None  # why no server can be used, while the call waits for one
        self._stops = stops

    def until(self, stop: Stop) -> Call:
        """Return this call, with the same deadline and attempts, that `stop` ends too."""
        branch = Call(self.timeout_s, self.max_retries, (*self._stops, stop), is_bound=self.is_bound)
        branch.started, branch.attempts, branch.avoided = self.started, self.attempts, self.avoided
        return branch

    def remaining_s(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            DeadlineExceededError: There are none.
        """
        left_s = self.started + self.timeout_s - time.monotonic()
        if left_s > 0 and not (self._stops and any(stop.is_set for stop in self._stops)):
            return left_s
        last_error = self.attempts[-1].error if self.attempts else self.waits_for
        if last_error is None:
            raise DeadlineExceededError(f"the call did not finish within {self.timeout_s:g} s. Raise timeout_s (--timeout).")
        tried = f" after {len(self.attempts)} failed attempts" if self.attempts else ", since no server can be used"
        raise DeadlineExceededError(f"no response within {self.timeout_s:g} s{tried}; the last error: {last_error}") from last_error

    def exhausted(self, error: ServiceError) -> RetriesExhaustedError:
        """Return the error of a call that is not tried again after its last error."""
        count, urls = len(self.attempts), {attempt.url for attempt in self.attempts}
        where = f" on {len(urls)} servers" if len(urls) > 1 else ""
        times = "once" if count == 1 else f"{count} times"
        return RetriesExhaustedError(f"{error} Tried {times}{where} in {time.monotonic() - self.started:.1f} s.", self.attempts)


class _MovedError(Exception):
    """A server failed a request that another server should get."""


class Sender:
    """Sends the requests of a client.

    Args:
        replicas: The servers.
        policy: The policy of retries.
        runtime: The surroundings of the client.
    """

    def __init__(self, replicas: ReplicaSet, policy: RetryPolicy, runtime: Runtime) -> None:
        self.replicas = replicas
        self.runtime = runtime
        self.is_closed = False
        self._policy = policy
        self._probes: set[Any] = set()  # an event loop only keeps weak references to its tasks

    def call(self, timeout_s: float, *, max_retries: int | None = None, stop: Stop | None = None, is_bound: bool = False) -> Call:
        """Begin a call.

        Args:
            timeout_s: Seconds until its deadline.
            max_retries: Retries of each request; None for those of the policy.
            stop: Ends the call before its deadline.
            is_bound: Whether it is about one server.

        Raises:
            ClientClosedError: The client is closed.
        """
        self.check_open()
        retries = self._policy.max_retries if max_retries is None else max_retries
        return Call(timeout_s, retries, () if stop is None else (stop,), is_bound=is_bound)

    async def close(self) -> None:
        """Close the transports. May be called twice."""
        self.is_closed = True
        for probe in self._probes:
            self.runtime.cancel(probe)
        if self.replicas.is_single:
            await self._close(self.replicas.replicas[0])
            return
        closing = [self.runtime.start(self._close(replica)) for replica in self.replicas.replicas]  # each may wait for its calls
        for handle in closing:
            await self.runtime.result(handle)

    async def _close(self, replica: Replica) -> None:
        await self.runtime.call(lambda _: replica.transport.close(), 0.0, replica.is_async)

    def check_open(self) -> None:
        """Raise a `ClientClosedError` if the client is closed."""
        if self.is_closed:
            urls = ", ".join(replica.url for replica in self.replicas.replicas)
            raise ClientClosedError(f"this client of {urls} is closed: create another, or call it within its `with` block")

    async def anywhere(self, call: Call, function: Callable[[Replica], Awaitable[_Result]]) -> _Result:
        """Run a function on a server, and on another one if that fails.

        Args:
            call: The call.
            function: Sends requests to the server, with `send`.

        Raises:
            ServiceError: No server could be reached, or the request failed for another reason.
        """
        tries = len(self.replicas.replicas) * (1 + call.max_retries)  # a call may be what makes servers fail
        try:
            while True:
                replica = self.replicas.replicas[0] if self.replicas.is_single else await self._choose(call)
                try:
                    return await function(replica)
                except _MovedError:
                    tries -= 1
                    if tries == 0:
                        last_error = call.attempts[-1].error
                        raise call.exhausted(last_error) from last_error
                    call.avoided.add(replica)
                    self.replicas.count_move()
        finally:
            call.attempts.clear()  # their tracebacks refer to the call, and to the images

    async def send(self, call: Call, replica: Replica, operation: Callable[[float], Any]) -> Any:
        """Send a request to a server until it succeeds.

        Args:
            call: The call.
            replica: The server.
            operation: Sends the request; its argument is the time that is left in seconds.

        Raises:
            ServiceError: The request failed, and another attempt would not help or is not allowed.
        """
        retries = 0
        while True:
            self.check_open()
            left_s = call.remaining_s()
            started_s = call.timeout_s - left_s
            self.replicas.begin(replica, is_retry=retries > 0)
            try:
                response = await self.runtime.call(operation, left_s, replica.is_async)
            except BaseException as error:  # only known in this block: a traceback that refers to itself would keep the images in memory
                self.replicas.end(replica, error)
                if not isinstance(error, ServiceError):
                    raise
                call.attempts.append(Attempt(replica.url, error, round(started_s, 6)))
                may_leave = not (call.is_bound or self.replicas.is_single)
                if may_leave and self.replicas.should_leave(replica, error):
                    raise _MovedError from error
                if not error.is_retryable or call.max_retries == 0:
                    raise
                await self._before_retry(call, error, retries)
                if may_leave and self.replicas.has_other(replica):
                    raise _MovedError from error
            else:
                self.replicas.end(replica, None)
                return response
            retries += 1

    async def in_order(self, coroutines: AsyncGenerator[Coroutine[Any, Any, _Result], None], limit: int) -> AsyncGenerator[_Result, None]:
        """Run coroutines, `limit` at the same time, and yield their results in order. The next one is only taken when it can run."""
        started: list[Any] = []
        try:
            async with aclosing(coroutines):
                async for coroutine in coroutines:
                    started.append(self.runtime.start(coroutine))
                    if len(started) >= limit:
                        yield await self.runtime.result(started[0])
                        del started[0]
            while started:
                yield await self.runtime.result(started[0])
                del started[0]
        finally:
            for handle in started:
                self.runtime.cancel(handle)
            started.clear()  # they refer to the error, whose traceback refers to this list

    async def _choose(self, call: Call) -> Replica:
        """Return the server for a call. If all are ejected, wait until one is back."""
        while True:
            for due in self.replicas.due_probes():
                self._probes = {probe for probe in self._probes if not probe.done()} | {self.runtime.start(self._probe(due))}
            replica = self.replicas.choose(call.avoided)
            if replica is not None:
                return replica
            ejected = self.replicas.next_ejected()
            if not self.replicas.was_reached:
                # Never reached: more likely a wrong URL than a server that comes back. The policy limits the attempts.
                retries = len(call.attempts) - len(self.replicas.replicas)
                if retries >= 0:
                    await self._before_retry(call, call.attempts[-1].error, retries)
                return ejected
            self.check_open()
            call.waits_for = ejected.error
            await self.runtime.sleep(min(_RECOVERY_PAUSE_S, call.remaining_s()))

    async def _probe(self, replica: Replica) -> None:
        error: ServiceError | None
        try:
            is_ready = await self.runtime.call(replica.transport.ready, _PROBE_TIMEOUT_S, replica.is_async)
            error = None if is_ready else ServiceError(f"{replica.url} reports that it is not ready")
        except ServiceError as raised:
            error = raised
        self.replicas.end_probe(replica, error)

    async def _before_retry(self, call: Call, error: ServiceError, retries: int) -> None:
        """Wait before a retry, or raise the error if there is none."""
        pause_s = max(self._policy.backoff_s(retries), error.retry_after_s or 0.0)
        if retries >= call.max_retries or pause_s >= call.remaining_s() or not self.replicas.take_retry():
            raise call.exhausted(error) from error
        _log.info("retry %d of %d in %.2f s: %s", retries + 1, call.max_retries, pause_s, error)
        await self.runtime.sleep(pause_s)
