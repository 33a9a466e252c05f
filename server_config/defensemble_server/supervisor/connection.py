"""A kept HTTP connection to Triton, on which one check waits for its answer."""

from __future__ import annotations

import http.client
import json
import select
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..admin_key import ADMIN_HEADER

# For connecting, sending, and reading an answer that has begun.
_IO_TIMEOUT_S = 2.0
_HEADER_LENGTH = "Inference-Header-Content-Length"
FAILURES = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class InferRequest:
    """One small request, encoded once.

    Args:
        path: Path of the URL.
        body: JSON, and after it the image in binary form.
        header_length: Length of the JSON.
    """

    path: str
    body: bytes
    header_length: int

    @classmethod
    def encode(cls, model: str, version: int | None, images: NDArray[np.float32], output: str) -> InferRequest:
        """Encode a request for one output of a model, in Triton's binary form, which needs no parsing of numbers."""
        data = images.tobytes()
        inputs = [{"name": "images", "shape": images.shape, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}]
        outputs = [{"name": output, "parameters": {"binary_data": True}}]
        header = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
        where = f"/v2/models/{model}" + ("" if version is None else f"/versions/{version}")
        return cls(f"{where}/infer", header + data, len(header))


@dataclass(frozen=True)
class InferAnswer:
    """What Triton answered: the values of the output, or its HTTP status and error."""

    status: int
    values: NDArray[np.float32] | None = None
    error: str = ""


class Connection:
    """A connection to Triton's HTTP front end; every method raises one of `FAILURES` if it is lost.

    Args:
        host: Address.
        port: Port.
        admin_key: Key for the repository index.
    """

    def __init__(self, host: str, port: int, admin_key: str) -> None:
        self._http = http.client.HTTPConnection(host, port, timeout=_IO_TIMEOUT_S)
        self._key = {ADMIN_HEADER: admin_key}

    def send(self, request: InferRequest) -> None:
        """Send a request; `answered` and `receive` follow."""
        headers = {_HEADER_LENGTH: str(request.header_length), "Content-Type": "application/octet-stream"}
        self._http.request("POST", request.path, request.body, headers)

    def fileno(self) -> int:
        """Return the descriptor on which the answer arrives."""
        return self._http.sock.fileno() if self._http.sock is not None else -1

    def answered(self, within_s: float) -> bool:
        """Wait for the answer; return whether it has begun to arrive."""
        return bool(select.select([self], [], [], within_s)[0])

    def receive(self) -> InferAnswer:
        """Read the answer."""
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            return InferAnswer(response.status, error=content.decode(errors="replace")[:300])
        length = int(response.headers[_HEADER_LENGTH])
        output = json.loads(content[:length])["outputs"][0]
        return InferAnswer(200, np.frombuffer(content[length:], np.float32).reshape(output["shape"]))

    def ready_versions(self) -> set[tuple[str, int]]:
        """Return the (model, version) pairs that are loaded."""
        index = self._json("POST", "/v2/repository/index", "{}")
        return {(entry["name"], int(entry["version"])) for entry in index if entry.get("state") == "READY"}

    def progress(self) -> dict[str, int]:
        """Return for each model a number that grows with every execution and every answered request of any of its versions."""
        totals: Counter[str] = Counter()
        for stats in self._json("GET", "/v2/models/stats", None)["model_stats"]:
            counts = stats["inference_stats"]
            totals[stats["name"]] += int(stats["execution_count"]) + int(counts["success"]["count"]) + int(counts["fail"]["count"])
        return dict(totals)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _json(self, method: str, path: str, body: str | None) -> Any:
        self._http.request(method, path, body, self._key)
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{path}: status {response.status}: {content.decode(errors='replace')[:300]}")
        return json.loads(content)


@dataclass
class Progress:
    """A counter, and since when it has not changed, by the monotonic clock."""

    count: int | None = None
    since: float = 0.0

    def idle_s(self, count: int) -> float:
        """Note the counter; return for how many seconds it has not changed."""
        now = time.monotonic()
        if count != self.count:
            self.count, self.since = count, now
        return now - self.since


@dataclass
class WaitingCheck:
    """A request that has not been answered yet, on a connection of its own.

    Args:
        connection: The connection.
        sent: When it was sent, by the monotonic clock.
        own: The counter of its model (`Connection.progress`).
        any: The counter of all models.
    """

    connection: Connection
    sent: float
    own: Progress = field(default_factory=Progress)
    any: Progress = field(default_factory=Progress)
