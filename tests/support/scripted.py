"""A TCP server with scripted answers, valid or not."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Script = Callable[[socket.socket, bytes], None]
"""Called with the connection and the first bytes of each request; it may close the connection."""


class ScriptedServer:
    """`requests` holds what was received, by request; `connections` counts them."""

    def __init__(self, script: Script, context: ssl.SSLContext | None) -> None:
        self._script = script
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.requests: list[bytes] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
        assert not self._thread.is_alive()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._context is not None:
                try:
                    connection = self._context.wrap_socket(connection, server_side=True)
                except OSError:  # a client that does not trust us
                    continue
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        while True:
            try:
                received = connection.recv(1 << 20)
                if not received:
                    return
                self.requests.append(received)
                self._script(connection, received)
            except OSError:  # the client went away, or the script closed it
                return


@contextmanager
def scripted(script: Script, context: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script, context)
    try:
        yield server
    finally:
        server.close()


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """A whole HTTP answer."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def sends(*answers: bytes) -> Script:
    """Sends the next answer to each request, the last one again and again."""
    left = list(answers)

    def script(connection: socket.socket, received: bytes) -> None:
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return script


def cut_off(connection: socket.socket, received: bytes) -> None:
    """Closes the connection in place of an answer."""
    connection.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port on which no process listens; neither the kernel nor our servers assign one of these in the meantime."""
    for port in random.SystemRandom().sample(range(9000, 10_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("of 100 ports none is free")
