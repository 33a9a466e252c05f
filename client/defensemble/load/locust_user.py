"""Users of Locust that call a model, for load from more than one machine. Only a locustfile imports this module.

The calls go over HTTP: gevent, on which Locust runs, makes its waits cooperative, but not those of gRPC.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
from locust import User, task
from locust.exception import StopUser
from numpy.typing import NDArray

from .. import Client, InputError, ModelInfo, RetryPolicy, ServiceError

_PAUSE_AFTER_FAILURE_S = 0.05  # else the users of a dead server would call it thousands of times a second


class DefensembleUser(User):  # type: ignore[misc]
    """A user of Locust who classifies images, one request after another. `--host` is the server's HTTP URL.

    A subclass sets the attributes. Its name is that of the users in Locust; each request is counted under the model's name. A failure
    counts under the class of its error, and nothing is sent twice.

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
    _client: Client | None = None
    _info: ModelInfo | None = None

    @task
    def predict(self) -> None:
        """Send one request, and report it to Locust."""
        started_at, started = time.time(), time.perf_counter()
        name, length, failure = self.model or "ensemble", 0, None
        try:
            if self._info is None:
                self._connect()
                started_at, started = time.time(), time.perf_counter()  # what a new client asks first is no request of a user
            assert self._client is not None
            assert self._info is not None
            assert self.images is not None
            name = self._info.name
            first = int(np.random.randint(len(self.images) - self.batch_size + 1))
            prediction = self._client.predict(self.images[first : first + self.batch_size], self.outputs, name)
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
            time.sleep(_PAUSE_AFTER_FAILURE_S)

    def on_stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _connect(self) -> None:
        """Ask the server for the model, and prepare images of its size."""
        if not str(self.host).startswith(("http://", "https://")):
            raise InputError(f"--host must be the server's HTTP URL, such as http://localhost:8000, as gevent and gRPC do not go together; got {self.host!r}")
        if self._client is None:
            self._client = Client(self.host, self.model, timeout_s=self.timeout_s, retry=RetryPolicy(max_retries=0))
        info = self._client.describe()
        if info.max_batch_size is not None and self.batch_size > max(1, info.max_batch_size):
            raise InputError(f"batch_size is {self.batch_size}, and {info.name} accepts at most {info.max_batch_size} images in a request")
        if self.images is None:
            if -1 in info.image_shape:
                raise InputError(f"{info.name} accepts images of any size: set the attribute `images` of {type(self).__name__}")
            self.images = np.random.default_rng().random((self.batch_size, *info.image_shape), np.float32)
        if len(self.images) < self.batch_size:
            raise InputError(f"batch_size is {self.batch_size}, and there are {len(self.images)} images; set more `images`")
        self._info = info
