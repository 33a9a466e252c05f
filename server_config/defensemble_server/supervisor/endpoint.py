"""The HTTP port of the supervisor: small GET and HEAD requests, answered from its latest report."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

# A request without its end after so long is dropped.
REQUEST_WITHIN_S = 2.0
LONGEST_REQUEST = 8192
# Above this number, the oldest connection is dropped: slow clients cannot keep others out.
MAX_CONNECTIONS = 256
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True)
class Answer:
    """An answer: status, text and its type."""

    status: int
    text: str
    kind: str = "application/json"


class Endpoint:
    """The HTTP server, in a thread of its own.

    Args:
        host: Address to listen on.
        port: Port.
        answer: Called with the path of a request; returns the answer, or None for an unknown path.

    Raises:
        OSError: The port cannot be used.
    """

    def __init__(self, host: str, port: int, answer: Callable[[str], Answer | None]) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)
        self._answer = answer
        self._open: dict[asyncio.StreamWriter, None] = {}  # oldest first
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and drop all connections."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._handle, sock=self._listener, limit=LONGEST_REQUEST)
        await self._stop.wait()
        server.close()  # `wait_closed` would wait for the clients from Python 3.12 on
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*handlers, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = None
        if len(self._open) > MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        try:
            async with _deadline(REQUEST_WITHIN_S, writer):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(request))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # the client has gone, sent no complete request in time, or too long a one
        finally:
            self._open.pop(writer, None)
            writer.close()

    def _response(self, request: bytes) -> bytes:
        words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            answer = Answer(400, '{"error": "not an HTTP/1.1 request"}\n')
        elif words[0] not in ("GET", "HEAD"):
            answer = Answer(405, '{"error": "use GET or HEAD"}\n')
        else:
            try:
                answer = self._answer(words[1].partition("?")[0]) or Answer(
                    404, '{"error": "use /healthz, /readyz, /status or /metrics"}\n'
                )
            except Exception:  # such as an OSError, which would count as one of the connection
                traceback.print_exc()
                answer = Answer(500, '{"error": "internal error; see the log of the server"}\n')
        body = answer.text.encode()
        head = (
            f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}\r\nContent-Type: {answer.kind}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if words[0] == "HEAD" else body)


@contextlib.asynccontextmanager
async def _deadline(seconds: float, writer: asyncio.StreamWriter):  # type: ignore[no-untyped-def]  # `asyncio.timeout` needs Python 3.11
    """Abort a connection after some seconds; what waits for it then ends with an error."""
    timer = asyncio.get_running_loop().call_later(seconds, writer.transport.abort)
    try:
        yield
    finally:
        timer.cancel()
