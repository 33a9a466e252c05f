"""Users of Locust that call a model, for load from more than one machine. Only a locustfile imports this module.

The calls go over HTTP: gevent, on which Locust runs, makes its waits cooperative, but not those of gRPC.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from locust import User, task
from locust.exception import StopUser
from numpy.typing import NDArray

from .. import Client, InputError, RetryPolicy, ServiceError
from .calling import PAUSE_AFTER_FAILURE_S


class _Connection(NamedTuple):
    """What the users of a class share in a process: the client keeps a connection for each call that is under way at the same time."""

    client: Client
    model: str
    images: NDArray[np.float32]


_connections: dict[tuple[type, str], _Connection] = {}
_connecting = threading.Lock()


class DefensembleUser(User):  # type: ignore[misc]
    """A user of Locust who classifies images, one request after another. `--host` is the server's HTTP URL.

    A subclass sets the attributes. Each request is counted under the model's name, a failure under the class of its error, and nothing is
    sent twice. Each process asks the server once for the model, with one inference that is not counted.

    Attributes:
        model: Name of the model; None for the server's only ensemble.
        outputs: The outputs to request.
        batch_size: Images per request.
        images: Images (N, C, H, W) to send, float32 in [0, 1], at least `batch_size` of them; None for random ones.
        timeout_s: Timeout of a request.

    Example:
        >>> class EnsembleUser(DefensembleUser):
        ...     model = "ensemble"
        ...     batch_size = 8
    """

    abstract = True
    model: str | None = None
    outputs: Sequence[str] = ("probabilities",)
    batch_size = 1
    images: NDArray[np.float32] | None = None
    timeout_s = 60.0

    @task  # type: ignore[untyped-decorator]
    def predict(self) -> None:
        """Send one request, and report it to Locust."""
        started_at, started = time.time(), time.perf_counter()
        name, length, failure = self.model or "ensemble", 0, None
        try:
            connection = self._connection()
            name, images = connection.model, connection.images
            first = int(np.random.randint(len(images) - self.batch_size + 1))
            started_at, started = time.time(), time.perf_counter()
            prediction = connection.client.predict(images[first : first + self.batch_size], self.outputs, name)
            length = sum(array.nbytes for array in prediction.received.values())
        except InputError as error:
            logging.getLogger(__name__).error("%s", error)
            self.environment.process_exit_code = 1
            self.environment.runner.quit()
            raise StopUser from error
        except ServiceError as error:
            failure = type(error).__name__  # Locust counts failures by their text, and that of an error may name times
        self.environment.events.request.fire(
            request_type="infer",
            name=name,
            response_time=1000 * (time.perf_counter() - started),
            response_length=length,
            exception=failure,
            context=self.context(),
            start_time=started_at,
            url=self.host,
        )
        if failure is not None:
            time.sleep(PAUSE_AFTER_FAILURE_S)

    def _connection(self) -> _Connection:
        key = (type(self), str(self.host))
        with _connecting:
            if key not in _connections:
                _connections[key] = self._connect(key[1])
        return _connections[key]

    def _connect(self, host: str) -> _Connection:
        """Ask the server for the model, and prepare images of its size."""
        if not host.startswith(("http://", "https://")):
            example = "such as http://localhost:8000"
            raise InputError(f"--host must be the server's HTTP URL, {example}, as gevent and gRPC do not go together; got {host!r}")
        client = Client(host, self.model, timeout_s=self.timeout_s, retry=RetryPolicy(max_retries=0))
        info = client.describe()
        if info.max_batch_size is not None and self.batch_size > max(1, info.max_batch_size):
            raise InputError(f"batch_size is {self.batch_size}, and {info.name} accepts at most {info.max_batch_size} images in a request")
        images = self.images
        if images is None and -1 in info.image_shape:
            raise InputError(f"{info.name} accepts images of any size: set the attribute `images` of {type(self).__name__}")
        if images is None:
            images = np.random.default_rng().random((self.batch_size, *info.image_shape), np.float32)
        if len(images) < self.batch_size:
            raise InputError(f"batch_size is {self.batch_size}, and there are {len(images)} images; set more `images`")
        return _Connection(client, info.name, images)
