"""An HTTP server of the KServe protocol with a known capacity: it computes one call after the other, each for the same time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHAPE = (1, 4, 4)
CLASSES = 3


class SlowServer(ThreadingHTTPServer):
    """A server without statistics, configurations and binary tensors in its answers.

    Attributes:
        service_s: Seconds for a call, whatever its batch size.
        rows: Number of images of each call that was answered.
        busy_s: Seconds in which it computed them.
    """

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: a client that goes away is no error of a test."""

    def __init__(self, service_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.service_s = service_s
        self.rows: list[int] = []
        self.busy_s = 0.0
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def die(self) -> None:
        """Close all sockets, as the kernel does for a process that was killed."""
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):  # closed by its client
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow_server(service_s: float) -> Iterator[SlowServer]:
    """Run a server in threads of this process."""
    server = SlowServer(service_s)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SlowServer

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # an answer is two packets
        self.server.connections.append(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        tensors = {"inputs": ("images", SHAPE), "outputs": ("logits", (CLASSES,))}
        metadata = {key: [{"name": name, "datatype": "FP32", "shape": [-1, *shape]}] for key, (name, shape) in tensors.items()}
        documents = {"/v2": {"name": "slow", "version": "1"}, "/v2/models/slow": {"name": "slow", "platform": "", **metadata}}
        self._send(documents.get(self.path))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        header = json.loads(content[: int(self.headers.get("Inference-Header-Content-Length", len(content)))])
        rows = header["inputs"][0]["shape"][0]
        if not header["outputs"][0].get("parameters", {}).get("classification"):  # of the look-up of class names, which it does not know
            with self.server.lock:
                began = time.monotonic()
                time.sleep(self.server.service_s)
                self.server.busy_s += time.monotonic() - began
                self.server.rows.append(rows)
        output = {"name": "logits", "datatype": "FP32", "shape": [rows, CLASSES], "data": [0.0] * rows * CLASSES}
        self._send({"model_name": "slow", "outputs": [output]})

    def _send(self, document: object) -> None:
        body = json.dumps(document if document is not None else {"error": "not found"}).encode()
        self.send_response(200 if document is not None else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)
