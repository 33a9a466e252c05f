"""Count the images that are sent to targets, whatever becomes of them."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._client.lookup import LOOK_UP
from .._exceptions import ServiceError
from .._transport.base import NO_HEADERS, Inputs, OutputRequest, Outputs, Transport


class SentCounts:
    """Images by what happened to them. Increments of several threads are counted; the values may be in a file that is mapped into memory.

    Attributes:
        values: int64 (4,): `sent` of all that left, `asked` without the client's retries, and of those the ones for `sanity` checks and for
            `verification`.
    """

    FIELDS = ("sent", "asked", "sanity", "verification")

    def __init__(self) -> None:
        self.values = np.zeros(len(self.FIELDS), np.int64)
        self._lock = threading.Lock()

    def add(self, count: int, *names: str) -> None:
        """Add a number of images to some of the counters.

        Args:
            count: The number; negative if they were not sent after all.
            names: The counters, `sent` first, so that it is never less than the others.
        """
        with self._lock:
            for name in names:
                self.values[self.FIELDS.index(name)] += count

    def move_to(self, values: NDArray[np.int64]) -> None:
        """Count in another array from now on, and add the present counts to it."""
        with self._lock:
            values += self.values
            self.values = values

    def reset(self) -> None:
        """Count from zero, in another array."""
        with self._lock:
            self.values = np.zeros_like(self.values)


@dataclass
class _First:
    """The images of a request that have not left yet, and where they are counted then."""

    left: int
    counters: tuple[str, ...]


_NONE = _First(0, ())


class CountingTransport:
    """Count the images of all inferences of a transport, by model. It passes everything else on.

    Attributes:
        counts: The counts by model.
        versions: The versions that responded, by model.

    Args:
        transport: The transport.

    Example:
        >>> counting = CountingTransport(transport_from_url("http://localhost:8000"))
        >>> client = Client("", transport=counting.as_transport())
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.counts: defaultdict[str, SentCounts] = defaultdict(SentCounts)
        self.versions: defaultdict[str, set[str]] = defaultdict(set)
        self._first: dict[str, _First] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def as_transport(self) -> Transport:
        """Return this object, as what it stands for."""
        transport: Any = self
        return transport  # type: ignore[no-any-return]

    def infer(
        self,
        model: str,
        inputs: Inputs,
        outputs: Sequence[OutputRequest],
        timeout_s: float,
        version: int | None = None,
        *,
        request_id: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Outputs:
        """Run a model, and count the images before they leave: a process that is killed has counted them."""
        counts, images = self.counts[model], len(next(iter(inputs.values())))
        with self._lock:
            # The id of a part of a request is that of the request, a slash and its position.
            first = _First(images, ("asked", "sanity")) if request_id == LOOK_UP else self._first.get(request_id.partition("/")[0], _NONE)
            new = min(images, first.left)
            first.left -= new
        counts.add(images, "sent")
        counts.add(new, *first.counters)
        try:
            response = self._transport.infer(model, inputs, outputs, timeout_s, version, request_id=request_id, headers=headers)
        except ServiceError as error:
            if not error.was_sent:
                counts.add(-new, *first.counters)
                counts.add(-images, "sent")
                with self._lock:
                    first.left += new
            raise
        self.versions[model].add(response.model_version)
        return response

    @contextmanager
    def counted(self, images: int, counters: tuple[str, ...]) -> Iterator[str]:
        """Yield the id of a request that counts its images when they leave for the first time, whatever the client retries.

        Args:
            images: The number of its images.
            counters: Where to count them.
        """
        with self._lock:
            request_id = f"probe-{next(self._ids)}"
            self._first[request_id] = _First(images, counters)
        try:
            yield request_id
        finally:
            with self._lock:
                del self._first[request_id]
