"""A TCP proxy in front of a real server that delays, cuts, corrupts, stalls or answers by itself, and counts connections."""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Direction = Literal["up", "down"]  # to the server, or to the client
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Fault:
    """What happens to a connection once `after` more bytes have gone in a direction. Only `slow` and `drip` last."""

    action: Literal["delay", "slow", "drip", "cut", "reset", "corrupt", "substitute", "stall", "answer"]
    after: int = 0
    direction: Direction = "down"
    seconds: float = 0.0
    count: int = 0
    content: bytes = b""
    old: bytes = b""


def delay(seconds: float, after: int = 0, direction: Direction = "down") -> Fault:
    """The bytes come late, once."""
    return Fault("delay", after, direction, seconds)


def slow(seconds: float) -> Fault:
    """The connection is slow from now on: each response comes late."""
    return Fault("slow", seconds=seconds)


def drip(seconds: float, after: int = 0) -> Fault:
    """The response comes byte by byte from now on, with a pause before each."""
    return Fault("drip", after, seconds=seconds)


def cut(after: int = 0, direction: Direction = "down") -> Fault:
    """The connection ends (FIN) as if the server had closed it; `after` bytes of a response truncate it."""
    return Fault("cut", after, direction)


def reset(after: int = 0, direction: Direction = "down") -> Fault:
    """The connection is reset (RST)."""
    return Fault("reset", after, direction)


def corrupt(after: int = 0, count: int = 1, direction: Direction = "down") -> Fault:
    """`count` bytes are changed, each to another value, chosen by the proxy's seed."""
    return Fault("corrupt", after, direction, count=count)


def replace(content: bytes, after: int = 0, direction: Direction = "down") -> Fault:
    """The bytes from `after` on are overwritten with `content`."""
    return Fault("corrupt", after, direction, count=len(content), content=content)


def substitute(old: bytes, new: bytes) -> Fault:
    """The next `old` of the response becomes `new`, which is as long."""
    assert len(old) == len(new)
    return Fault("substitute", content=new, old=old)


def stall(after: int = 0, direction: Direction = "down") -> Fault:
    """The connection stays open, and nothing comes any more."""
    return Fault("stall", after, direction)


def answer(status: str, body: bytes = b"", headers: str = "") -> Fault:
    """The proxy itself answers the request with an HTTP response; the server does not see it."""
    return Fault("answer", 0, "up", content=f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)


@dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server_writer: asyncio.StreamWriter
    direction: Direction = "down"
    fault: Fault | None = None
    passed: int = 0  # bytes in the fault's direction since it was taken
    request: bytes = b""  # what has come of a request that the proxy answers
    is_dead: bool = False  # nothing is forwarded any more


class TcpProxy:
    """Forwards connections to a port of this machine.

    A client's first bytes after a response, or after it connected, begin an exchange: with HTTP a request, with gRPC some frames. An
    exchange takes the next fault of `inject`, else that of `always`; a connection keeps its fault until it has happened.

    Attributes:
        accepted: Connections of clients so far.
        open: Those that the client has not closed yet.
        exchanges: Exchanges so far.
        taken: The faults that were taken, in order.
    """

    def __init__(self, port: int, seed: int = 0) -> None:
        self.accepted = 0
        self.open = 0
        self.exchanges = 0
        self.taken: list[Fault] = []
        self.always: Fault | None = None
        self._faults: deque[Fault | None] = deque()
        self._random = random.Random(seed)
        self._server_port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        # A socket that is bound but does not listen keeps the port while the proxy refuses connections.
        self._placeholder = _bound(0)
        self.port: int = self._placeholder.getsockname()[1]
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._listen())

    def inject(self, *faults: Fault | None) -> None:
        """Give these faults to the next exchanges, one each; None is no fault. What a client sends after this begins an exchange."""
        self._faults.extend(faults)
        for connection in list(self._open):  # gRPC may have acknowledged the last response
            connection.direction = "down"

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse new connections, and reset those that are open."""
        self._run(self._refuse())
        try:
            yield
        finally:
            self._run(self._listen())

    def close(self) -> None:
        """Close all connections."""
        self._run(self._refuse())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()
        self._placeholder.close()

    def assert_no_socket_left(self, within_s: float = 3.0) -> None:
        """Assert that the clients of this process have closed their sockets, as they and the proxy see it."""
        until(lambda: self.open == 0 and connected_sockets(self.port) == 0, within_s)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, sock=_bound(self.port), backlog=512)

    async def _refuse(self) -> None:
        if self._listener is not None:
            await close_listener(self._listener, self._tasks)
            self._listener = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self.open += 1
        try:
            try:
                server = await asyncio.open_connection("127.0.0.1", self._server_port)
            except OSError:
                return
            connection = _Connection(reader, writer, *server)
            self._open.add(connection)
            down = asyncio.create_task(self._forward(connection, "down"))
            self._tasks.add(down)
            try:
                with suppress(ConnectionError):  # the client has reset it, which ends it as well
                    await self._forward(connection, "up")
            finally:
                self._open.discard(connection)
                server[1].transport.abort()
                down.cancel()
                await asyncio.gather(down, return_exceptions=True)
                self._tasks.discard(down)
        except asyncio.CancelledError:
            pass  # `_refuse` ends it
        finally:
            _abort(writer)
            self.open -= 1
            self._tasks.discard(task)

    async def _forward(self, connection: _Connection, direction: Direction) -> None:
        reader = connection.reader if direction == "up" else connection.server_reader
        writer = connection.server_writer if direction == "up" else connection.writer
        while True:
            try:
                data = await reader.read(_CHUNK)
            except ConnectionError:
                if direction == "up":
                    raise
                _abort(connection.writer)  # the server has reset it
                return
            if not data:
                if direction == "down" and not connection.is_dead:
                    _send_end(connection.writer)
                return
            if direction == "up" and connection.direction == "down":
                self._begin_exchange(connection)
            connection.direction = direction
            for part in self._split(connection, direction, data):
                if isinstance(part, Fault):
                    await self._act(connection, part)
                elif not connection.is_dead:
                    writer.write(part)
                    with suppress(ConnectionError):  # the other direction sees it, too
                        await writer.drain()

    def _begin_exchange(self, connection: _Connection) -> None:
        self.exchanges += 1
        if connection.fault is None:
            connection.fault = self._faults.popleft() if self._faults else self.always
            connection.passed = 0
            if connection.fault is not None:
                self.taken.append(connection.fault)

    def _split(self, connection: _Connection, direction: Direction, data: bytes) -> Iterator[bytes | Fault]:
        """Split data at the place of the connection's fault, and apply it where it is one to the bytes themselves."""
        fault = connection.fault
        if fault is None or fault.direction != direction:
            yield data
            return
        if fault.action == "substitute":
            if fault.old in data:
                connection.fault = None
            yield data.replace(fault.old, fault.content, 1)
            return
        room = max(0, fault.after - connection.passed)
        start = max(0, connection.passed - fault.after)  # of the corrupted bytes, those that are done
        connection.passed += len(data)
        if len(data) <= room:
            yield data
            return
        if room:
            yield data[:room]
        rest = data[room:]
        if fault.action == "answer":
            connection.request += rest
            if _is_whole(connection.request):
                connection.request, connection.fault = b"", None
                yield fault
        elif fault.action == "corrupt":
            size = min(fault.count - start, len(rest))
            if start + size == fault.count:
                connection.fault = None
            changed = fault.content[start : start + size] or bytes(byte ^ self._random.randrange(1, 256) for byte in rest[:size])
            yield changed + rest[size:]
        elif fault.action == "drip":
            for byte in rest:
                yield fault
                yield bytes([byte])
        else:
            if fault.action != "slow":
                connection.fault = None
            yield fault
            yield rest

    async def _act(self, connection: _Connection, fault: Fault) -> None:
        if fault.action in ("delay", "slow", "drip"):
            await asyncio.sleep(fault.seconds)
        elif fault.action == "answer":
            connection.direction = "down"
            connection.writer.write(fault.content)
        elif not connection.is_dead:
            connection.is_dead = True
            if fault.action == "cut":
                _send_end(connection.writer)
            elif fault.action == "reset":
                _abort(connection.writer)


async def close_listener(listener: asyncio.Server, tasks: set[asyncio.Task[None]]) -> None:
    """Stop listening, cancel the tasks of all connections and wait for them; each task closes its connection.

    A connection that was just accepted would be closed by nobody: it is not in `tasks` yet, and asyncio loses those of a closed listener.
    Therefore nothing more is accepted, and all other tasks of the event loop end, before the listener is closed.
    """
    for listening in listener.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    while asyncio.all_tasks() - tasks - {asyncio.current_task()}:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # a task that is cancelled before it starts closes nothing
    listener.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _send_end(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):  # the client has gone
        writer.write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close a connection with RST."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


@contextmanager
def proxied(url: str, seed: int = 0) -> Iterator[TcpProxy]:
    """Run a proxy in front of the server with this URL."""
    proxy = TcpProxy(int(url.rpartition(":")[2]), seed)
    try:
        yield proxy
    finally:
        proxy.close()


def until(holds: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.002)


def connected_sockets(*ports: int) -> int:
    """Return how many TCP sockets of this process are connected to one of these ports, closed by the other side or not."""
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            own.add(os.readlink(descriptor))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in own and int(row[2].rpartition(":")[2], 16) in ports for row in rows)
