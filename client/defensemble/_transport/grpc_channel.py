"""A gRPC channel that threads and event loops share. Its two drivers differ in how they wait for a call: one blocks, one awaits.

Triton before 2.59 may crash if a channel closes during a call (server PRs 7840, 8078, 8220). Against such a server, no call is cut off: its
deadline is not sent but kept here, a caller who gives up leaves the call to run out, and a channel waits for its calls before it closes.

Why not `grpc.aio`: its calls are tasks of the event loop, and `asyncio.run` cancels all tasks at its end. Calls on one channel of the
synchronous library, with futures that wake the loop, run out whatever happens to the loop, and serve any number of loops. Such a call takes
1.2 times as long at batch 1 (0.96 and 0.80 ms), and with 64 in flight more calls are answered than with 8 threads.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import re
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .address import Address
from .asyncio_waits import AsyncioWaits, finish
from .base import ConnectionOptions, TlsFiles, check_compression
from .http_connection import open_socket
from .socket_waits import BlockingWaits, SocketWaits
from .tls import ssl_context_for_address

Metadata = tuple[tuple[str, str], ...]

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Reconnect quickly to a server that starts late: gRPC's default pauses grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Reconnecting to a restarted server took 0.13 s after it listened, at most 0.24; with 1000 here, 0.27 and at most 0.53.
    ("grpc.max_reconnect_backoff_ms", 250),
    # min_reconnect_backoff_ms is not set: it also limits the time to connect.
    # Two clients of one address share nothing, above all not the pause after a failure.
    ("grpc.use_local_subchannel_pool", 1),
    # As in the HTTP transport, no proxy is read from the environment.
    ("grpc.enable_http_proxy", 0),
]
_CLOSE_WAIT_S = 2.0  # how long a channel that closes waits for its calls
_SILENCE_S = 5.0  # after as long without any response, a call that times out ends the use of a connection
_SILENT_KEPT = 3  # silent connections that are kept for the calls under way on them
_FIRST_SAFE_RELEASE = (2, 59)  # of Triton: it survives a channel that closes during a call


class GrpcChannel(ABC):
    """A channel to one server.

    Attributes:
        server: What the server reported about itself; None until it did. Asked once, in the background, with the first call.
        is_closed: Whether `close` was called.
        process: The process that opened the channel, the only one that can use it.
    """

    _waits: SocketWaits

    def __init__(self, address: Address, options: ConnectionOptions) -> None:
        self._address = address
        compression = grpc.Compression.Gzip if check_compression(options.compression) else None
        self._tls_context = ssl_context_for_address(address, options.tls)
        if self._tls_context is not None:
            self._tls_context.set_alpn_protocols(["h2"])
            self._open = partial(grpc.secure_channel, address.netloc, _credentials(options.tls or TlsFiles()), _OPTIONS, compression)
        else:
            self._open = partial(grpc.insecure_channel, address.netloc, _OPTIONS, compression)
        self._channels: list[grpc.Channel] = []  # the last one is in use
        self._open_channel()
        self._under_way = 0
        self._changed = threading.Condition()
        self._is_asked = False
        self._keeps_calls = True
        self.server: Any = None
        self.is_closed = False
        self.process = os.getpid()
        _CHANNELS.add(self)

    async def invoke(self, method: str, request: Any, timeout_s: float, metadata: Metadata = ()) -> Any:
        """Call a method of the service.

        Args:
            method: Name of the method.
            request: Its message.
            timeout_s: Timeout in seconds.
            metadata: Metadata to send.

        Raises:
            grpc.RpcError: The call failed.
            TimeoutError: The call did not end in time.
            ValueError: The channel is closed.
        """
        try:
            response = await self._invoke(method, request, timeout_s, metadata)
        except TimeoutError:
            self._leave_if_silent()
            raise
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._leave_if_silent()
            raise
        self._last_response = time.monotonic()
        return response

    @abstractmethod
    async def _invoke(self, method: str, request: Any, timeout_s: float, metadata: Metadata) -> Any: ...

    async def connect(self, timeout_s: float) -> None:
        """Make a connection, with TLS if the channel has it, and close it again: gRPC states only as text why it failed.

        Raises:
            OSError: No connection could be made; `TimeoutError` after the timeout.
        """
        (await open_socket(self._waits, self._address, self._tls_context, time.monotonic() + timeout_s)).close()

    @abstractmethod
    async def close(self) -> None:
        """Close the channel, after the calls that must not be cut off, at most 2 s. May be called twice."""

    def forget_server(self) -> None:
        """Ask for the server's version again with the next call: another one may have started."""
        self.server, self._keeps_calls, self._is_asked = None, True, False

    def wait_for_calls(self, deadline: float) -> None:
        """Block until no call is under way that must not be cut off, or until the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0 or not self._keeps_calls, max(deadline - time.monotonic(), 0))

    def _open_channel(self) -> None:
        self._channels.append(self._open())
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channels[-1])
        self._last_response = time.monotonic()  # or when it was opened

    def _leave_if_silent(self) -> None:
        """Use a new connection if the current one is silent: the network may have lost it, and gRPC would use it for many minutes."""
        with self._changed:
            if self.is_closed or time.monotonic() - self._last_response < _SILENCE_S:
                return
            self._open_channel()
            self.forget_server()
            silent = self._channels[:-1][:-_SILENT_KEPT]
            del self._channels[: len(silent)]
        for channel in silent:
            channel.close()

    def _close_channels(self) -> None:
        for channel in self._channels:
            channel.close()

    def _check(self, timeout_s: float) -> None:
        """Check that a call can begin, and ask for the server's version if this is the first one."""
        if self.is_closed:
            raise ValueError("the channel is closed")
        if timeout_s <= 0:
            raise TimeoutError
        if not self._is_asked:
            self._is_asked = True
            self._start("ServerMetadata", service_pb2.ServerMetadataRequest(), None, (), self._note_server)

    def _note_server(self, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            self.server = call.result()
            self._keeps_calls = crashes_on_close(self.server.name, self.server.version)

    def _start(self, method: str, request: Any, timeout_s: float | None, metadata: Metadata, finish: Callable[[Any], object]) -> Any:
        """Start a call and return its future. Another thread calls `finish` with it at its end."""
        call = getattr(self._stub, method).future(request, timeout=timeout_s, metadata=metadata)
        self._count(1)

        def end(call: Any) -> None:
            finish(call)
            self._count(-1)

        call.add_done_callback(end)  # which also keeps the call, and this channel, from the garbage collector, which cancels calls
        return call

    def _count(self, change: int) -> None:
        with self._changed:
            self._under_way += change
            self._changed.notify_all()


class BlockingChannel(GrpcChannel):
    """A channel whose calls block the thread and never suspend."""

    _waits = BlockingWaits()

    def __init__(self, address: Address, options: ConnectionOptions) -> None:
        super().__init__(address, options)
        self._idle: list[_Worker] = []  # its append and pop are atomic
        weakref.finalize(self, _stop, self._idle)

    async def _invoke(self, method: str, request: Any, timeout_s: float, metadata: Metadata) -> Any:
        self._check(timeout_s)
        call = partial(getattr(self._stub, method), request, metadata=metadata)
        if not self._keeps_calls:
            return call(timeout=timeout_s)
        responses: list[Any] = []
        errors: list[BaseException] = []
        finished = threading.Lock()
        finished.acquire()

        def run() -> None:
            try:
                responses.append(call())
            except BaseException as error:  # raised in the thread of the caller
                errors.append(error)
            finally:
                self._count(-1)
                finished.release()

        self._count(1)
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._idle)
        worker.jobs.put(run)
        if not finished.acquire(timeout=timeout_s):
            raise TimeoutError
        if errors:
            raise errors.pop()  # its traceback refers to this list
        return responses[0]

    async def close(self) -> None:
        self.is_closed = True
        self.wait_for_calls(time.monotonic() + _CLOSE_WAIT_S)
        self._close_channels()
        _stop(self._idle)


class AsyncioChannel(GrpcChannel):
    """A channel whose calls are awaited, on whatever event loop runs."""

    _waits = AsyncioWaits()

    async def _invoke(self, method: str, request: Any, timeout_s: float, metadata: Metadata) -> Any:
        self._check(timeout_s)
        keeps_call = self._keeps_calls
        loop = asyncio.get_running_loop()
        is_over = loop.create_future()
        call = self._start(method, request, None if keeps_call else timeout_s, metadata, lambda _: _wake(loop, is_over))
        timer = loop.call_later(timeout_s, finish, is_over, False)
        try:
            if not await is_over:
                raise TimeoutError
        finally:
            timer.cancel()
            if not keeps_call:
                call.cancel()  # without effect on a call that is over
        return call.result()

    async def close(self) -> None:
        self.is_closed = True
        if self._keeps_calls and self._under_way:
            await asyncio.to_thread(self.wait_for_calls, time.monotonic() + _CLOSE_WAIT_S)
        self._close_channels()


class _Worker(threading.Thread):
    """A thread that makes calls, one after the other, which those who wait for them may leave behind.

    Against a call in one's own thread, this takes 80 us more; a future takes 200 more, since gRPC starts a thread for each that is the only
    one.
    """

    def __init__(self, idle: list[_Worker]) -> None:
        super().__init__(name="defensemble-grpc", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = idle
        self.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job()
            self._idle.append(self)
            del job  # it holds the channel, whose end stops idle threads


def _stop(idle: list[_Worker]) -> None:
    while idle:
        idle.pop().jobs.put(None)


def crashes_on_close(name: str, version: str) -> bool:
    """Return whether a server may crash if a channel closes during a call, by what it reports about itself."""
    release = re.match(r"(\d+)\.(\d+)", version)
    return name == "triton" and (release is None or (int(release[1]), int(release[2])) < _FIRST_SAFE_RELEASE)


def _credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    certificate_file, key_file = tls.certificate_file, tls.key_file or tls.certificate_file
    authorities, key, chain = (None if file is None else Path(file).read_bytes() for file in (tls.ca_file, key_file, certificate_file))
    return grpc.ssl_channel_credentials(authorities, key, chain)


def _wake(loop: asyncio.AbstractEventLoop, is_over: asyncio.Future[bool]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(finish, is_over, True)


_CHANNELS: weakref.WeakSet[GrpcChannel] = weakref.WeakSet()


@atexit.register  # after gRPC's own functions, and therefore called before them
def _wait_at_exit() -> None:
    channels = [channel for channel in _CHANNELS if channel.process == os.getpid()]
    for channel in channels:
        channel.is_closed = True  # daemon threads start no more calls
    deadline = time.monotonic() + _CLOSE_WAIT_S
    with suppress(KeyboardInterrupt):  # a second Ctrl-C ends the wait
        for channel in channels:
            channel.wait_for_calls(deadline)
